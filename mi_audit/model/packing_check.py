"""Is packing exact on this model? Rows full of prompts are held against the same prompts alone, per token, worst token, after every block."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache

from mi_audit.model.hook_points import HookPoints
from mi_audit.model.packed_mask import packed_mask
from mi_audit.model.packing import LONGEST_ROW, Packing, lengths_apart, longest_packable
from mi_audit.model.transformers_io import LOAD_ERRORS

TOLERANCE: Final = 5e-5
"""Largest relative difference of a token between a packed row and its prompt alone, in float32.

Measured in float32 on SmolLM2, Gemma 3 270M and small random models: up to 4e-6; a mask or a position that is not heeded gives 0.05 and more.
"""
MOST_LOW: Final = 0.04
"""The same in lower precision, at most: twice what padding the prompts in one batch changes, or one rounding where that is less."""
SHARED: Final = 4
LEAST: Final = 2 * SHARED


@torch.no_grad()
def check_packing(points: HookPoints, config: Any, prompts: Sequence[Tensor]) -> Packing:
    """What is exact of packing and of passing shared tokens once.

    Args:
        points: the model's hook points.
        config: the configuration of its decoder.
        prompts: token ids [n] of a few prompts of different lengths, at least 8 tokens the longest.
    """
    return replace(_measured(points, config, prompts), apart=lengths_apart(config))


def _measured(points: HookPoints, config: Any, prompts: Sequence[Tensor]) -> Packing:
    longest, reason = longest_packable(config)
    if reason or longest < LEAST:
        return Packing(reason=reason or f"its local attention reaches {longest} tokens only")
    layers = [tap.layer for tap in points.taps if tap.name == "resid_post" and tap.layer is not None]
    if not layers:
        return Packing(reason="resid_post can't be read, so it can't be checked")
    cut = [tokens[: longest - SHARED] for tokens in prompts]
    tolerance = _tolerance(points, layers, cut)
    none, shared = cut[0][:0], cut[0][:SHARED].flip(0)
    long = cut[0].repeat(-(-longest // len(cut[0])))[:longest]  # a reach of attention that the configuration does not tell shows on it
    packed = _difference(points, layers, _filled(cut, LONGEST_ROW), none, tolerance) or _difference(points, layers, [long], none, tolerance)
    if packed:
        return Packing(reason=packed)
    apart = _difference(points, layers, _filled(cut, LONGEST_ROW - SHARED), shared, tolerance)
    return Packing(longest, shared_prefix=not apart, reason=apart or "")


def _filled(prompts: Sequence[Tensor], room: int) -> list[Tensor]:
    """The prompts, over and over, while they fit into a row."""
    row: list[Tensor] = []
    for tokens in cycle(prompts):
        room -= len(tokens)
        if room < 0:
            break
        row.append(tokens)
    return row


def _tolerance(points: HookPoints, layers: Sequence[int], prompts: Sequence[Tensor]) -> float:
    """What a packed token may differ by."""
    dtype = points.decoder.embedding.weight.dtype
    if dtype == torch.float32:
        return TOLERANCE
    padded_BL = torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)
    lengths_B = torch.tensor([len(tokens) for tokens in prompts], device=padded_BL.device)
    mask_BL = (torch.arange(padded_BL.shape[1], device=padded_BL.device) < lengths_B[:, None]).long()
    padded = _after_blocks(points, layers, {"input_ids": padded_BL, "attention_mask": mask_BL, "use_cache": False})
    worst = max(_relative(padded[:, row, : len(tokens)], _alone(points, layers, tokens)) for row, tokens in enumerate(prompts))
    return min(MOST_LOW, max(torch.finfo(dtype).eps, 2 * worst))


def _difference(points: HookPoints, layers: Sequence[int], prompts: Sequence[Tensor], prefix: Tensor, tolerance: float) -> str | None:
    """Why a row of prompts that begin with `prefix` is not what the prompts are alone; None if it is."""
    device, lengths = prefix.device, [len(tokens) for tokens in prompts]
    segments_1L = torch.arange(1, len(prompts) + 1).repeat_interleave(torch.tensor(lengths))[None].to(device)
    called: dict[str, Any] = {
        "input_ids": torch.cat(list(prompts))[None],
        "position_ids": torch.cat([torch.arange(len(prefix), len(prefix) + length) for length in lengths])[None].to(device),
        "attention_mask": packed_mask(segments_1L, len(prefix), points.decoder.embedding.weight.dtype),
        "use_cache": False,
    }
    try:
        if len(prefix):
            past = DynamicCache()
            points.decoder.base(input_ids=prefix[None], past_key_values=past, use_cache=True)
            called["past_key_values"] = DynamicCache([(keys, values) for keys, values, *_ in past])
        together = _after_blocks(points, layers, called)[:, 0].split_with_sizes(lengths, dim=1)
    except LOAD_ERRORS as error:
        return f"the model refuses it ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})"
    distinct = {id(tokens): tokens for tokens in prompts}
    alone = {key: _alone(points, layers, torch.cat([prefix, tokens]))[:, len(prefix) :] for key, tokens in distinct.items()}
    worst = max(_relative(acts, alone[id(tokens)]) for acts, tokens in zip(together, prompts, strict=True))
    return None if worst <= tolerance else f"a token of a packed row is off by {worst:.2g} of its norm (allowed {tolerance:.2g})"


def _alone(points: HookPoints, layers: Sequence[int], tokens: Tensor) -> Tensor:
    """The residual stream after each block, [block, L, width] of one prompt."""
    return _after_blocks(points, layers, {"input_ids": tokens[None], "use_cache": False})[:, 0]


def _after_blocks(points: HookPoints, layers: Sequence[int], called: dict[str, Any]) -> Tensor:
    """The residual stream after each block, [block, R, L, width] of all rows."""
    acts: dict[int, Tensor] = {}

    def keep(layer: int, acts_RLD: Tensor) -> None:
        acts[layer] = acts_RLD.to("cpu", torch.float32)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(points.resolve("resid_post", layer).listen(partial(keep, layer)).remove)
        points.decoder.base(**called)
    return torch.stack([acts[layer] for layer in layers])


def _relative(one: Tensor, other: Tensor) -> float:
    """The largest relative difference of a token; infinite where anything is not finite."""
    ratio = (one - other).norm(dim=-1) / other.norm(dim=-1)
    return float(ratio.max()) if bool(torch.isfinite(ratio).all()) else float("inf")
