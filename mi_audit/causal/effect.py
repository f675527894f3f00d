"""What an effect is to the room that measures it. No torch before something is computed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mi_audit.suites.prompt import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from mi_audit.plan.detectors import DetectorSpec

Tokenize = Callable[[str], tuple[int, ...]]
"""From a text that follows a prompt to its tokens, none added."""


@dataclass(frozen=True)
class OfLogits:
    """Made of the logits after a prompt, or after each of several continuations of it.

    Attributes:
        continuations: of a prompt, the texts that may follow it, C of them; one empty text for what the model says first.
        part: from float32 logits [R, K, vocabulary] of R variants, and the tokens of a continuation, to a number of each variant [R]. The logits stand at the
            prompt's last token and at each token of the continuation but the last: K is the number of its tokens, or 1 where it is empty.
        value: from the numbers of all continuations [C, R], and the prompt, to the effect [R].
    """

    continuations: Callable[[Prompt], tuple[str, ...]]
    part: "Callable[[Tensor, tuple[int, ...]], Tensor]"
    value: "Callable[[Tensor, Prompt], Tensor]"


@dataclass(frozen=True)
class OfText:
    """Made of a text of at most `max_new_tokens` tokens that the model writes after the prompt: `value` gives the number of a text and its prompt."""

    max_new_tokens: int
    value: Callable[[str, Prompt], float]


@dataclass(frozen=True)
class OfDetector:
    """The score of a detector."""

    detector: "DetectorSpec"


Effect = OfLogits | OfText | OfDetector
