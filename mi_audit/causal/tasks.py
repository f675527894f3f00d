"""From prompts to what passes through the model in an experiment: their tokens, which of these are touched, and where something is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.forward import read_alone
from mi_audit.engine.selection import select
from mi_audit.engine.tokens import Encoded
from mi_audit.errors import PromptError
from mi_audit.plan.places import At, Tokens
from mi_audit.plan.steering import Steered
from mi_audit.suites.prompt import Prompt

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel


@dataclass(frozen=True)
class Asked:
    """A prompt of P tokens, and which of them are touched. `answers`: whether tokens that follow it are touched too, but for the last, of which nothing is
    predicted."""

    prompt: Prompt
    ids: tuple[int, ...]
    touched: tuple[int, ...]
    answers: bool

    def followed_by(self, answer: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The tokens of prompt and answer without the answer's last; which are touched; and where the answer's tokens are predicted."""
        length, ids = len(self.ids), (*self.ids, *answer[:-1])
        touched = (*self.touched, *range(length, len(ids))) if self.answers else self.touched
        return ids, touched, tuple(range(length - 1, len(ids)))

    def beginning(self, most: int) -> "Asked":
        """The first tokens, `most` of them or all there are; the last of them is touched where what follows it is."""
        length = min(most, len(self.ids))
        touched = tuple(position for position in self.touched if position < length - 1)
        last = (length - 1,) if self.answers or length - 1 in self.touched else ()
        return Asked(self.prompt, self.ids[:length], (*touched, *last), self.answers)


def asked(model: "LoadedModel", prompts: Sequence[Prompt], tokens: Steered | Tokens, at: At, cache: ActivationCache | None) -> list[Asked]:
    """The prompts as the model sees them.

    Attention sinks at `at` are not touched where several tokens are; the token from which the answer's first is predicted always is, where the answer's are.

    Raises:
        PromptError: a prompt can't be encoded, a selection does not fit it, or all that would be touched are attention sinks.
    """
    return [_asked(model, prompt, each, tokens, at) for prompt, each in zip(prompts, encode_all(model, prompts, cache), strict=True)]


def _asked(model: "LoadedModel", prompt: Prompt, encoded: Encoded, tokens: Steered | Tokens, at: At) -> Asked:
    if prompt.response is not None and tokens != "prompt" and isinstance(tokens, str):
        raise PromptError(
            f"prompt {prompt.id!r} holds its response already, so nothing is left to be generated; steer on a suite of questions without responses"
        )
    ids = encoded.ids[: max((place for place, added in enumerate(encoded.added) if not added), default=0) + 1]  # an end of text that a tokenizer adds ends it
    last = len(ids) - 1
    if tokens == "generated":
        return Asked(prompt, ids, (last,), True)
    chosen = list(range(last + 1)) if isinstance(tokens, str) else list(select(encoded, tokens, prompt))
    answers = tokens == "all"
    if len(chosen) > 1:
        _, sinks = read_alone(model, ids, at)
        chosen = [position for position in chosen if not sinks[position] or (answers and position == last)]
    if not chosen:
        raise PromptError(f"prompt {prompt.id!r}: all tokens that would be touched at {at} are attention sinks; choose others")
    return Asked(prompt, ids, tuple(chosen), answers)


def tokenizer_of(model: "LoadedModel") -> Callable[[str], tuple[int, ...]]:
    """From a text that follows a prompt to its tokens, none added."""
    return lambda text: tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()
