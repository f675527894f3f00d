"""Is packing exact on this model? Rows full of prompts are held against the same prompts alone, per token, worst token, after every block."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from mi_audit.model.hook_points import HookPoints
from mi_audit.model.packing import LONGEST_ROW, Packing, longest_packable, packed_mask
from mi_audit.model.transformers_io import LOAD_ERRORS

TOLERANCE = {torch.float32: 5e-5, torch.float16: 0.05}
TOLERANCE_LOW = 0.15
"""Largest relative difference of a token between a packed row and its prompt alone; the second is for bfloat16.

Measured in float32 on SmolLM2, Gemma 3 270M and small random models: up to 4e-6; a mask or a position that is not heeded gives 0.05 and more.
"""
SHARED = 4
LEAST = 2 * SHARED


@torch.no_grad()
def check_packing(points: HookPoints, config: Any, prompts: Sequence[Tensor]) -> Packing:
    """What is exact of packing and of passing shared tokens once.

    Args:
        points: the model's hook points.
        config: the configuration of its decoder.
        prompts: token ids [n] of a few prompts of different lengths, at least 8 tokens the longest.
    """
    longest, reason = longest_packable(config)
    if reason or longest < LEAST:
        return Packing(reason=reason or f"its local attention reaches {longest} tokens only")
    layers = [tap.layer for tap in points.taps if tap.name == "resid_post" and tap.layer is not None]
    if not layers:
        return Packing(reason="resid_post can't be read, so it can't be checked")
    cut = [tokens[: longest - SHARED] for tokens in prompts]
    packed = _worst_difference(points, layers, cut, cut[0][:0])
    if packed:
        return Packing(reason=packed)
    apart = _worst_difference(points, layers, cut, cut[0][:SHARED].flip(0))
    return Packing(longest, shared_prefix=not apart, reason=apart or "")


def _worst_difference(points: HookPoints, layers: Sequence[int], prompts: Sequence[Tensor], prefix: Tensor) -> str | None:
    """Why rows of prompts that begin with `prefix` are not what the prompts are alone; None if they are."""
    row: list[int] = []
    segments: list[int] = []
    positions: list[int] = []
    placed: list[tuple[int, int]] = []
    for number, tokens in cycle(enumerate(prompts)):
        if len(prefix) + len(row) + len(tokens) > LONGEST_ROW:
            break
        placed.append((number, len(row)))
        segments += [len(placed)] * len(tokens)
        positions += range(len(prefix), len(prefix) + len(tokens))
        row += tokens.tolist()
    device = prompts[0].device
    segments_RL = torch.tensor([segments], device=device)
    dtype = points.decoder.embedding.weight.dtype
    called: dict[str, Any] = {
        "input_ids": torch.tensor([row], device=device),
        "position_ids": torch.tensor([positions], device=device),
        "attention_mask": packed_mask(segments_RL, len(prefix), dtype),
        "use_cache": False,
    }
    try:
        if len(prefix):
            past = DynamicCache()
            points.decoder.base(input_ids=prefix[None], past_key_values=past, use_cache=True)
            called["past_key_values"] = DynamicCache([(keys, values) for keys, values, *_ in past])
        together = _after_blocks(points, layers, called)
    except LOAD_ERRORS as error:
        return f"the model refuses it ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})"
    alone = [_after_blocks(points, layers, {"input_ids": torch.cat([prefix, tokens])[None], "use_cache": False})[:, len(prefix) :] for tokens in prompts]
    worst = max(_relative(together[:, start : start + len(prompts[number])], alone[number]) for number, start in placed)
    tolerance = TOLERANCE.get(dtype, TOLERANCE_LOW)
    return None if worst <= tolerance else f"a token of a packed row is off by {worst:.2g} of its norm (allowed {tolerance:.2g})"


def _after_blocks(points: HookPoints, layers: Sequence[int], called: dict[str, Any]) -> Tensor:
    """The residual stream after each block, [block, L, width] of one row."""
    acts: dict[int, Tensor] = {}

    def keep(layer: int, acts_1LD: Tensor) -> None:
        acts[layer] = acts_1LD[0].to("cpu", torch.float32)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(points.resolve("resid_post", layer).listen(partial(keep, layer)).remove)
        points.decoder.base(**called)
    return torch.stack([acts[layer] for layer in layers])


def _relative(one: Tensor, other: Tensor) -> float:
    """The largest relative difference of a token; infinite where anything is not finite."""
    ratio = (one - other).norm(dim=-1) / other.norm(dim=-1)
    return float(ratio.max()) if bool(torch.isfinite(ratio).all()) else float("inf")
