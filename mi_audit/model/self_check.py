"""The self-check at load: do the hook points mean on this model what their names say?

Per token, worst token, relative to the token's largest term: resid_pre + attn_out + mlp_out = resid_post and resid_pre + attn_out = resid_mid at every
layer; what the norm before the feed-forward gives, times its gain, is what the feed-forward reads; the last block's output is not the final norm's; a padded
batch gives what each prompt gives alone. A hook point that fails is refused.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mi_audit.model.checks import Check, SelfCheck
from mi_audit.model.devices import input_device
from mi_audit.model.hook_map import Key
from mi_audit.model.hook_points import HookPoints
from mi_audit.model.norms import gain_and_bias

PROMPTS = (
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "Water boils at 100 degrees.",
    "Why is the sky blue during the day?",
)
MAX_TOKENS = 16
BATCHED_TOLERANCE = {torch.float32: 2e-4, torch.float16: 0.05}
BATCHED_TOLERANCE_LOW = 0.15
"""Largest relative difference of a token between a padded batch and its prompt alone; the second is for bfloat16.

Measured on SmolLM2 and Gemma 3 270M: float32 up to 3.6e-5, float16 4.8e-3, bfloat16 3.4e-2; a missing mask gives 0.8 and more.
"""
SUM_TOLERANCE = 1e-5

SUM = "resid_pre + attn_out + mlp_out = resid_post"
MIDDLE = "resid_pre + attn_out = resid_mid"
GAIN = "ln2.hook_normalized · gain + bias = mlp.hook_in"
FINAL = "the last block's output is not the final norm's"
BATCHED = "batched = single"


@dataclass(frozen=True, slots=True)
class Finding:
    """The worst relative difference of one check at one place."""

    check: str
    key: Key
    worst: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False also for a difference that is not a number."""
        return self.worst <= self.tolerance


@torch.no_grad()
def self_check(points: HookPoints, tokenizer: PreTrainedTokenizerBase) -> tuple[SelfCheck, HookPoints]:
    """Check every hook point on three short prompts (four forward passes); gives the record and the hook points less those that failed."""
    prompts = check_prompts(points, tokenizer)
    longest = max(len(tokens) for tokens in prompts)
    padded_BL = torch.stack([torch.nn.functional.pad(tokens, (0, longest - len(tokens))) for tokens in prompts])
    mask_BL = torch.stack([torch.arange(longest, device=tokens.device) < len(tokens) for tokens in prompts]).long()
    batched, _ = _capture(points, padded_BL, mask_BL)
    findings: list[Finding] = []
    for row, tokens in enumerate(prompts):
        single, output = _capture(points, tokens[None], torch.ones_like(tokens[None]))
        findings += [_compare(key, batched[key][row, : len(tokens)], acts[0]) for key, acts in single.items()]
        if row == 0:
            findings += _sums(points.n_layers, single)
            findings += _gains(points, single)
            findings += _final(points, single, output)
    failed = {finding.key: f"its self-check failed: {_sentence(finding)}" for finding in findings if not finding.passed}
    remaining = points.without(failed)
    return SelfCheck(tuple(_summaries(findings)), remaining.refused), remaining


def check_prompts(points: HookPoints, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Token ids [L] of the prompts, cut short, with different lengths."""
    embedding = points.decoder.embedding
    ids = [list(tokenizer(prompt)["input_ids"])[: MAX_TOKENS - 3 * row] or [0] for row, prompt in enumerate(PROMPTS)]
    return [torch.tensor(row, device=input_device(embedding)) for row in ids]


def _capture(points: HookPoints, tokens_BL: Tensor, mask_BL: Tensor) -> tuple[dict[Key, Tensor], Tensor]:
    """Activations [B, L, D] at every usable hook point, and the decoder's own output, all on the device of the tokens."""
    acts: dict[Key, Tensor] = {}

    def keep(key: Key, acts_BLD: Tensor) -> None:
        acts[key] = acts_BLD.to(tokens_BL.device, copy=True)

    with ExitStack() as stack:
        for tap in points.taps:
            stack.callback(tap.listen(partial(keep, (tap.name, tap.layer))).remove)
        output: Tensor = points.decoder.base(input_ids=tokens_BL, attention_mask=mask_BL, use_cache=False)[0]
    return acts, output.to(tokens_BL.device)


def _compare(key: Key, batched_LD: Tensor, single_LD: Tensor) -> Finding:
    tolerance = BATCHED_TOLERANCE.get(single_LD.dtype, BATCHED_TOLERANCE_LOW)
    return Finding(BATCHED, key, _worst(batched_LD, single_LD, single_LD), tolerance)


def _sums(n_layers: int, acts: dict[Key, Tensor]) -> Iterator[Finding]:
    """The two identities of the residual stream, at every layer that has all their terms."""
    for layer in range(n_layers):
        pre, post, mid = (acts.get((name, layer)) for name in ("resid_pre", "resid_post", "resid_mid"))
        attn, mlp = acts.get(("attn_out", layer)), acts.get(("mlp_out", layer))
        if pre is None or attn is None:
            continue
        tolerance = max(SUM_TOLERANCE, 8 * torch.finfo(pre.dtype).eps)
        attn_is_right = False
        if mid is not None:
            middle = Finding(MIDDLE, ("resid_mid", layer), _worst(pre[0].double() + attn[0].double(), mid[0], pre[0], attn[0]), tolerance)
            attn_is_right = middle.passed
            yield middle
        if post is not None and mlp is not None:
            total = pre[0].double() + attn[0].double() + mlp[0].double()
            worst = _worst(total, post[0], pre[0], attn[0], mlp[0])
            yield Finding(SUM, ("mlp_out", layer), worst, tolerance)
            if not attn_is_right:
                yield Finding(SUM, ("attn_out", layer), worst, tolerance)


def _gains(points: HookPoints, acts: dict[Key, Tensor]) -> Iterator[Finding]:
    """The gain and bias of the norm before the feed-forward, seen from its response to a probe, make of what stands before them what the feed-forward reads."""
    for tap in points.taps:
        read = acts.get(("mlp.hook_in", tap.layer))
        if tap.name != "ln2.hook_normalized" or read is None:
            continue
        gain, bias = (each.to(read.device).double() for each in gain_and_bias(tap.module, acts[tap.name, tap.layer]))
        tolerance = max(SUM_TOLERANCE, 8 * torch.finfo(read.dtype).eps)
        yield Finding(GAIN, (tap.name, tap.layer), _worst(acts[tap.name, tap.layer][0].double() * gain + bias, read[0]), tolerance)


def _final(points: HookPoints, acts: dict[Key, Tensor], output_BLD: Tensor) -> Iterator[Finding]:
    """The last resid_post must differ from what the decoder returns after its final norm; a decoder without one has nothing to confuse."""
    key = ("resid_post", points.n_layers - 1)
    if points.decoder.final_norm is not None and key in acts:
        same = torch.equal(acts[key], output_BLD)
        yield Finding(FINAL, key, float(same), 0.0)


def _worst(one_LD: Tensor, other_LD: Tensor, *terms_LD: Tensor) -> float:
    """Largest over tokens of ‖one − other‖ / (largest norm among `other` and the terms); nan if anything is not finite."""
    scale_L = torch.stack([term.double().norm(dim=-1) for term in (other_LD, *terms_LD)]).amax(0)
    difference_L = (one_LD.double() - other_LD.double()).norm(dim=-1)
    ratio_L = torch.where(difference_L == 0, 0.0, difference_L / scale_L)
    return float(ratio_L.max()) if bool(torch.isfinite(scale_L).all() & torch.isfinite(ratio_L).all()) else float("nan")


def _summaries(findings: list[Finding]) -> Iterator[Check]:
    """One check per identity, and for batching per hook point: the worst place stands for all."""
    grouped: dict[str, list[Finding]] = {}
    for finding in findings:
        grouped.setdefault(f"{BATCHED}: {finding.key[0]}" if finding.check == BATCHED else finding.check, []).append(finding)
    for name, group in grouped.items():
        worst = max(group, key=lambda finding: float("inf") if math.isnan(finding.worst) else finding.worst)
        yield Check(name, all(finding.passed for finding in group), worst.worst, worst.tolerance, f"worst at {_where(worst.key)} of {len(group)} comparisons")


def _sentence(finding: Finding) -> str:
    if math.isnan(finding.worst):
        return f"{finding.check} can't be tested, because activations are not finite (float16 overflows on some models: give dtype bfloat16 or float32)"
    return f"{finding.check} is off by {finding.worst:.2g} of the token's norm (allowed {finding.tolerance:.2g})"


def _where(key: Key) -> str:
    name, layer = key
    return name if layer is None else f"{name} at layer {layer}"
