"""Whole passes of a model, LM head and all, in which the activation at a hook point is replaced: what it costs the model to have something else there."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from mi_audit.engine.batches import Ids
from mi_audit.errors import PromptError
from mi_audit.model.full_precision import use_full_precision
from mi_audit.model.sinks import sink_mask, token_norms
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

TOKENS: Final = 512
"""In a batch, at most: each has as many logits as the vocabulary has entries."""

Replacement = Callable[[Tensor], Tensor]
"""From activations [N, width] in float32 to what takes their place, of the same shape."""


@torch.inference_mode()
def next_token_losses(model: "LoadedModel", prompts: Sequence[Ids], at: At, replacements: Sequence[Replacement]) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of predicting each next token, by the model as it is and with its activations replaced.

    Args:
        model: the model.
        prompts: token ids, n prompts of two tokens at least.
        at: the hook point, its layer absolute.
        replacements: what takes the place of the activation of every token but attention sinks, r of them; a pass for each.

    Returns:
        Sums over the next tokens of each prompt, float64 on the host: `losses` [1 + r, n], of the model as it is first, in nats; `kls` [r, n], the divergence
        KL(p‖q) of the distribution q with the replacement from p without, in nats; and `tokens` [n], how many next tokens a prompt has.

    Raises:
        HookPointError: the model has no such hook point, or it can't be changed.
        PromptError: a prompt has one token, or does not fit into the device's memory.
    """
    use_full_precision()
    losses = torch.zeros(1 + len(replacements), len(prompts), dtype=torch.float64)
    kls = torch.zeros(len(replacements), len(prompts), dtype=torch.float64)
    for rows in _batches(prompts):
        ids, real = _padded([prompts[row] for row in rows], model.device)
        plain, found = _passed(model, ids, real, at, None)
        losses[0, rows] = _summed(_losses(plain, ids), real)
        for number, replacement in enumerate(replacements):
            changed, _ = _passed(model, ids, real, at, _at_ordinary_tokens(replacement, found, real))
            losses[1 + number, rows] = _summed(_losses(changed, ids), real)
            kls[number, rows] = _summed((plain[:, :-1].exp() * (plain[:, :-1] - changed[:, :-1])).sum(dim=-1), real)
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


def _passed(model: "LoadedModel", ids: Tensor, real: Tensor, at: At, change: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the next token [R, L, vocabulary] in float32, and the activation [R, L, width] that stood at the hook point before any change."""
    heard: list[Tensor] = []

    def hear(acts_RLD: Tensor) -> Tensor | None:
        heard.append(acts_RLD)
        return None if change is None else change(acts_RLD)

    handle = model.hook_points.resolve(at.point, at.layer).listen(hear)
    try:
        logits = model.hf(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
    except torch.OutOfMemoryError as error:
        raise PromptError(f"a prompt of {ids.shape[1]} tokens with its logits does not fit into the memory of {model.device}; take shorter ones") from error
    finally:
        handle.remove()
    return logits.to(torch.float32).log_softmax(dim=-1), heard[0]


def _at_ordinary_tokens(replacement: Replacement, found_RLD: Tensor, real: Tensor) -> Callable[[Tensor], Tensor]:
    """Replaces the activations of real tokens that are no attention sinks; which they are is seen on what stands there without any change."""
    ordinary = real.to(found_RLD.device) & ~sink_mask(token_norms(found_RLD), real.to(found_RLD.device))

    def change(acts_RLD: Tensor) -> Tensor:
        changed = acts_RLD.clone()
        changed[ordinary] = replacement(acts_RLD[ordinary].to(torch.float32)).to(acts_RLD.dtype)
        return changed

    return change


def _losses(logp_RLV: Tensor, ids: Tensor) -> Tensor:
    """−log p of the token that follows each but the last [R, L − 1]."""
    return -logp_RLV[:, :-1].gather(-1, ids[:, 1:, None].to(logp_RLV.device))[..., 0]


def _summed(values: Tensor, real: Tensor) -> Tensor:
    """Sums over the next tokens that are real, float64 [R] on the host."""
    return (values.double() * real[:, 1:].to(values.device)).sum(dim=-1).cpu()
