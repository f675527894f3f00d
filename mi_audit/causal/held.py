"""From an effect's name to what computes it on a model; that of a plugin is held to what an effect promises."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mi_audit.causal.effect import Effect, OfDetector, OfLogits, OfText, Tokenize
from mi_audit.hookspecs import EffectMaker
from mi_audit.plan.effects import EffectSpec
from mi_audit.plugins import Offer
from mi_audit.suites.prompt import Prompt


def effect_of(offer: Offer[EffectMaker], spec: EffectSpec, tokenize: Tokenize) -> Effect:
    """Make an effect for the model whose tokenizer this is.

    Raises:
        DetectorError: it can't be measured on this model.
        PluginError: a plugin's code failed or gave no effect. The effect raises the same where it fails, or gives other than a number for each variant.
    """
    with offer.blamed():
        effect = offer.value(spec, tokenize)
        if not isinstance(effect, OfLogits | OfText | OfDetector):
            raise TypeError(f"it gave {type(effect).__name__}; OfLogits or OfText of mi_audit.causal.effect was expected")
    if offer.plugin.built_in or isinstance(effect, OfDetector):
        return effect
    if isinstance(effect, OfText):
        value = effect.value
        return OfText(effect.max_new_tokens, lambda text, prompt: float(_blamed(offer, lambda: float(value(text, prompt)))))
    return _held(offer, effect)


def _held(offer: Offer[EffectMaker], effect: OfLogits) -> OfLogits:
    def part(logits_RKV: Tensor, ids: tuple[int, ...]) -> Tensor:
        return _numbers(offer, len(logits_RKV), effect.part, logits_RKV, ids)

    def value(parts_CR: Tensor, prompt: Prompt) -> Tensor:
        return _numbers(offer, parts_CR.shape[1], effect.value, parts_CR, prompt)

    return OfLogits(lambda prompt: tuple(_blamed(offer, effect.continuations, prompt)), part, value)


def _numbers(offer: Offer[EffectMaker], rows: int, compute: Callable[..., Any], *given: object) -> Tensor:
    def checked(*given: object) -> Tensor:
        found = compute(*given)
        if not isinstance(found, Tensor) or found.shape != (rows,):
            shape = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else "which is no tensor"
            raise ValueError(f"it gave {type(found).__name__} {shape}; a tensor of shape {(rows,)}, a number for each variant of a prompt, was expected")
        return found

    numbers: Tensor = _blamed(offer, checked, *given)
    return numbers


def _blamed(offer: Offer[EffectMaker], compute: Callable[..., Any], *given: object) -> Any:
    with offer.blamed():
        try:
            return compute(*given)
        except torch.OutOfMemoryError as error:  # fewer variants at a time may fit
            full = error
    raise full
