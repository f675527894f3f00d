"""Whole passes of a model, LM head and all, in which the activation at a hook point is replaced: what it costs the model to have something else there."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from mi_audit.engine.batches import Ids
from mi_audit.engine.progress import Hearer, reporting
from mi_audit.errors import HookPointError, PromptError
from mi_audit.model.full_precision import use_full_precision
from mi_audit.model.sinks import sink_mask, token_norms
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

TOKENS: Final = 512
"""In a batch, at most: each has as many logits as the vocabulary has entries."""

Replacement = Callable[[Tensor], Tensor]
"""From the activations [R, L, d] of whole prompts in float32, filled up on the right, to what is put in [R, L, width]."""

Change = Callable[[Tensor, Tensor], Tensor]
"""From the activations [R, L, d] that are given and those [R, L, width] that stand at the hook point to what takes the place of the latter."""


@torch.inference_mode()
def next_token_losses(
    model: "LoadedModel", prompts: Sequence[Ids], at: At, replacements: Sequence[Replacement], *, given: At | None = None, progress: Hearer | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of predicting each next token, by the model as it is and with its activations replaced.

    Args:
        model: the model.
        prompts: token ids, n prompts of two tokens at least.
        at: the hook point, its layer absolute.
        replacements: what takes the place of the activation of every token but attention sinks, r of them; a pass for each.
        given: the hook point from whose activations it is made, its layer absolute and before `at`; by default `at` itself. A token that is an attention sink
            at either is left alone: from what stands out at `given` no fair replacement can be made, and what stands out at `at` is not to be missed. Of a
            hook point after a norm, where none stands out, they are those of the residual stream before it.
        progress: hears of the prompts, once all their passes are done.

    Returns:
        Sums over the next tokens of each prompt, float64 on the host: `losses` [1 + r, n], of the model as it is first, in nats; `kls` [r, n], the divergence
        KL(p‖q) of the distribution q with the replacement from p without, in nats; and `tokens` [n], how many next tokens a prompt has.

    Raises:
        HookPointError: the model has no such hook point, or it can't be changed, or `given` comes after it.
        PromptError: a prompt has one token, or does not fit into the device's memory.
    """
    use_full_precision()
    places = (at,) if given is None or given == at else (given, at)
    seen_at = tuple(dict.fromkeys(model.hook_points.sinks_seen_at(place) for place in places))
    losses = torch.zeros(1 + len(replacements), len(prompts), dtype=torch.float64)
    kls = torch.zeros(len(replacements), len(prompts), dtype=torch.float64)
    with reporting(progress, len(prompts), sum(map(len, prompts))):
        for rows in _batches(prompts):
            ids, real = _padded([prompts[row] for row in rows], model.device)
            plain, found = _passed(model, ids, real, seen_at, None)
            ordinary = real & ~_sinks(found, real)
            losses[0, rows] = _summed(_losses(plain, ids), real)
            for number, replacement in enumerate(replacements):
                changed, _ = _passed(model, ids, real, places, _at_ordinary_tokens(replacement, ordinary))
                losses[1 + number, rows] = _summed(_losses(changed, ids), real)
                kls[number, rows] = _summed((plain[:, :-1].exp() * (plain[:, :-1] - changed[:, :-1])).sum(dim=-1), real)
            if progress is not None:
                progress.advance(len(rows), sum(len(prompts[row]) for row in rows))
    return losses, kls, torch.tensor([len(prompt) - 1 for prompt in prompts])


def _batches(prompts: Sequence[Ids]) -> list[list[int]]:
    """Rows of prompts of similar length, few enough tokens together."""
    short = [row for row, prompt in enumerate(prompts) if len(prompt) < 2]
    if short:
        raise PromptError(f"a prompt of {len(prompts[short[0]])} tokens has no next token to predict; take longer ones")
    batches: list[list[int]] = []
    for row in sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row)):
        if batches and (len(batches[-1]) + 1) * len(prompts[batches[-1][0]]) <= TOKENS:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _padded(prompts: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [R, L], filled up on the right, which a causal model does not see, and where they are real."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    real = torch.tensor([[True] * len(prompt) + [False] * (longest - len(prompt)) for prompt in prompts], device=device)
    return ids, real


def _passed(model: "LoadedModel", ids: Tensor, real: Tensor, places: tuple[At, ...], change: Change | None) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of the next token [R, L, vocabulary] in float32, and the activations [R, L, width] at the places that are read.

    Those are all where nothing is changed. Else the last is changed, from the activations at the first and at itself.
    """
    heard: list[Tensor] = []
    taps = [model.hook_points.resolve(place.point, place.layer) for place in places]
    if change is not None and taps[0].order > taps[-1].order:
        raise HookPointError(f"{taps[-1]} can't be made from {taps[0]}, which a forward pass comes by later")
    with ExitStack() as listening:
        for tap in taps if change is None else taps[:-1]:
            listening.callback(tap.listen(heard.append).remove)
        if change is not None:
            listening.callback(taps[-1].intervene(lambda acts_RLD: change(heard[0] if heard else acts_RLD, acts_RLD)).remove)
        try:
            logits = model.hf(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
        except torch.OutOfMemoryError as error:
            raise PromptError(f"a prompt of {ids.shape[1]} tokens with its logits does not fit into the memory of {model.device}; take shorter ones") from error
    return logits.to(torch.float32).log_softmax(dim=-1), heard


def _sinks(found: Sequence[Tensor], real: Tensor) -> Tensor:
    """Which tokens are attention sinks at any of the places, bool [R, L]; seen on what stands there without any change."""
    return torch.stack([sink_mask(token_norms(acts_RLD), real.to(acts_RLD.device)).to(real.device) for acts_RLD in found]).any(dim=0)


def _at_ordinary_tokens(replacement: Replacement, ordinary: Tensor) -> Change:
    """Replaces the activations of these tokens; the replacement is made where `ordinary` is, whichever device the block is on."""

    def change(given_RLD: Tensor, acts_RLD: Tensor) -> Tensor:
        changed, where = acts_RLD.clone(), ordinary.to(acts_RLD.device)
        changed[where] = replacement(given_RLD.to(ordinary.device, torch.float32))[ordinary].to(acts_RLD.device, acts_RLD.dtype)
        return changed

    return change


def _losses(logp_RLV: Tensor, ids: Tensor) -> Tensor:
    """−log p of the token that follows each but the last [R, L − 1]."""
    return -logp_RLV[:, :-1].gather(-1, ids[:, 1:, None].to(logp_RLV.device))[..., 0]


def _summed(values: Tensor, real: Tensor) -> Tensor:
    """Sums over the next tokens that are real, float64 [R] on the host."""
    return (values.double() * real[:, 1:].to(values.device)).sum(dim=-1).cpu()
