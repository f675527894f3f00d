"""Several prompts in one row, and tokens that all prompts share passed once: how the model is told, and whether that is exact on it.

A token of a packed row sees the shared tokens and the earlier ones of its own prompt, nothing else: block-diagonal attention, given to the model as a mask,
with positions counted in each prompt. Whether an architecture does as it is told is measured at load, never assumed.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

LONGEST_ROW: Final = 256
"""Tokens of the longest packed row, shared ones included; rows of this length are checked."""

KNOWN_LAYERS: Final = frozenset({"full_attention", "sliding_attention"})
_WINDOWS: Final = ("sliding_window", "window_size", "attention_chunk_size", "local_attention_window")
"""Names that configurations give to the reach of local attention."""


@dataclass(frozen=True, slots=True)
class Packing:
    """What is exact on a model. `longest`: prompts of at most so many tokens may share a row, 0 if none; `shared_prefix`: whether the keys and values of a
    common beginning may be reused; `reason`: why prompts are padded instead, where they are."""

    longest: int = 0
    shared_prefix: bool = False
    reason: str = ""

    def __str__(self) -> str:
        if not self.longest:
            return f"padded: {self.reason}"
        return "packed, shared beginnings passed once" if self.shared_prefix else f"packed; beginnings are not shared: {self.reason}"


def longest_packable(config: Any) -> tuple[int, str]:
    """The longest prompt that may be packed on a model of this configuration, 0 with the reason if none.

    Up to the reach of its local attention a prompt sees all of itself, so that one mask serves every layer.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    if unknown := sorted(kinds - KNOWN_LAYERS):
        return 0, f"its layers of the type {unknown[0]} don't work by an attention mask"
    reach = [value for name in _WINDOWS if isinstance(value := getattr(config, name, None), int) and value > 0]
    return min([LONGEST_ROW, *reach]), ""


def packed_mask(segments_RL: Tensor, shared: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, [R, 1, L, shared + L]: 0 where a token may look, else the lowest number.

    `segments_RL` numbers the prompts of each row; places without a token (0) look at each other, so that no softmax is empty.
    """
    rows, length = segments_RL.shape
    own = segments_RL[:, :, None] == segments_RL[:, None, :]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segments_RL.device).tril()
    common = (segments_RL > 0)[:, :, None].expand(rows, length, shared)
    allowed = torch.cat([common, own & earlier], dim=-1)[:, None]
    return torch.zeros(allowed.shape, dtype=dtype, device=segments_RL.device).masked_fill_(~allowed, torch.finfo(dtype).min)
