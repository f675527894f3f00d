"""The effects that are built in. What they compute with is imported when one is used, so that a plan knows their names without it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mi_audit.causal.effect import Effect, OfDetector, OfLogits, OfText, Tokenize
from mi_audit.errors import DetectorError
from mi_audit.hookspecs import EffectMaker, hookimpl
from mi_audit.plan.effects import EffectSpec
from mi_audit.suites.prompt import Prompt

if TYPE_CHECKING:
    from torch import Tensor

_T = TypeVar("_T")


@hookimpl
def mi_audit_effects() -> Mapping[str, EffectMaker]:
    """Of first tokens, of answers, of texts, of a detector, and functions of the author's."""
    return {
        "logit_difference": _logit_difference,
        "probability": _probability,
        "log_odds": _log_odds,
        "log_likelihood": _log_likelihood,
        "choice": _choice,
        "refuses": _refuses,
        "detector_score": _detector_score,
        "function": _function,
        "of_text": _of_text,
    }


def _logit_difference(spec: EffectSpec, tokenize: Tokenize) -> Effect:
    positive, negative = (_first_tokens(spec, name, tokenize) for name in ("positive", "negative"))
    if shared := set(positive) & set(negative):
        raise DetectorError(f"{spec}: answers of both sides begin with the same token ({min(shared)}), so they can't be told apart by their first tokens")
    return OfLogits(_first, lambda logits, _: logits[:, 0, positive].logsumexp(dim=-1) - logits[:, 0, negative].logsumexp(dim=-1), _only)


def _probability(spec: EffectSpec, tokenize: Tokenize) -> Effect:
    answers = _first_tokens(spec, "answers", tokenize)
    return OfLogits(_first, lambda logits, _: (logits[:, 0, answers].logsumexp(dim=-1) - logits[:, 0].logsumexp(dim=-1)).exp(), _only)


def _log_odds(spec: EffectSpec, tokenize: Tokenize) -> Effect:
    answers = _first_tokens(spec, "answers", tokenize)

    def part(logits_RKV: "Tensor", ids: tuple[int, ...]) -> "Tensor":
        import torch

        others = torch.ones(logits_RKV.shape[-1], dtype=torch.bool, device=logits_RKV.device)
        others[answers] = False
        return logits_RKV[:, 0, answers].logsumexp(dim=-1) - logits_RKV[:, 0, others].logsumexp(dim=-1)

    return OfLogits(_first, part, _only)


def _log_likelihood(spec: EffectSpec, tokenize: Tokenize) -> Effect:
    name = str(dict(spec.arguments)["answer"])
    return OfLogits(lambda prompt: (str(prompt.field(name)),), likelihood, _only)


def _choice(spec: EffectSpec, tokenize: Tokenize) -> Effect:
    given = dict(spec.arguments)
    wrong = given["wrong"]
    names = (str(given["right"]), *(wrong if isinstance(wrong, tuple) else ()))
    return OfLogits(
        lambda prompt: tuple(str(prompt.field(name)) for name in names),
        likelihood,
        lambda parts_CR, _: parts_CR.softmax(dim=0)[0],
    )


def _refuses(spec: EffectSpec, tokenize: Tokenize) -> Effect:
    from mi_audit.causal.refusals import is_refusal

    return OfText(_new_tokens(spec), lambda text, _: float(is_refusal(text)))


def _detector_score(spec: EffectSpec, tokenize: Tokenize) -> Effect:
    assert spec.detector is not None
    return OfDetector(spec.detector)


def _function(spec: EffectSpec, tokenize: Tokenize) -> Effect:
    import numpy as np
    import torch

    compute = spec.function
    assert compute is not None

    def value(logits: "Tensor", prompt: Prompt) -> "Tensor":
        found = _of_the_author(spec, prompt, lambda: np.asarray(compute(logits.cpu().numpy(), prompt), dtype=np.float64))
        if found.shape != (len(logits),):
            raise DetectorError(
                f"{spec}: the function returned an array of shape {found.shape} for {len(logits)} variants of a prompt; return a number for each"
            )
        return torch.from_numpy(found)

    # the function is given the logits themselves: its part keeps them, and its value makes the number
    return OfLogits(_first, lambda logits, _: logits[:, 0], lambda parts_CRV, prompt: value(parts_CRV[0], prompt))


def _of_text(spec: EffectSpec, tokenize: Tokenize) -> Effect:
    compute = spec.function
    assert compute is not None
    return OfText(_new_tokens(spec), lambda text, prompt: _of_the_author(spec, prompt, lambda: float(compute(text, prompt))))


def _of_the_author(spec: EffectSpec, prompt: Prompt, call: Callable[[], _T]) -> _T:
    """What a function of the author's gives; what it raises names it."""
    try:
        return call()
    except Exception as error:
        code = getattr(spec.function, "__code__", None)
        where = "" if code is None else f" ({Path(code.co_filename).name}:{code.co_firstlineno})"
        raise DetectorError(f"{spec}: the function{where} raised {type(error).__name__}: {error} at prompt {prompt.id!r}") from error


def likelihood(logits_RKV: "Tensor", ids: tuple[int, ...]) -> "Tensor":
    """log P of the K tokens [R], in nats."""
    import torch

    wanted = torch.tensor(ids, device=logits_RKV.device)[None, :, None].expand(len(logits_RKV), -1, 1)
    return logits_RKV.log_softmax(dim=-1).gather(-1, wanted)[..., 0].sum(dim=1)


def _first(prompt: Prompt) -> tuple[str, ...]:
    return ("",)


def _only(parts_CR: "Tensor", prompt: Prompt) -> "Tensor":
    return parts_CR[0]


def _first_tokens(spec: EffectSpec, name: str, tokenize: Tokenize) -> list[int]:
    """The first token of each answer, once each."""
    given = dict(spec.arguments)[name]
    texts = given if isinstance(given, tuple) else (str(given),)
    found = {text: tokenize(text) for text in texts}
    if empty := [text for text, ids in found.items() if not ids]:
        raise DetectorError(f"{spec}: {empty[0]!r} has no tokens for this model's tokenizer; give another answer")
    return list(dict.fromkeys(ids[0] for ids in found.values()))


def _new_tokens(spec: EffectSpec) -> int:
    return int(dict(spec.arguments)["max_new_tokens"])  # type: ignore[arg-type]  # checked where it was declared
