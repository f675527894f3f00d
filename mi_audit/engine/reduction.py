"""From the activations of a batch to one vector per prompt, on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chosen:
    """The positions to read in each of B prompts, K at most: `index` int64 [B, K], and `real` bool [B, K], False where a prompt has fewer."""

    index: Tensor
    real: Tensor

    @classmethod
    def of(cls, positions: Sequence[Sequence[int]], device: torch.device) -> "Chosen":
        """From the positions of each prompt."""
        most = max(len(row) for row in positions)
        index = torch.tensor([[*row, *[0] * (most - len(row))] for row in positions])
        real = torch.tensor([[True] * len(row) + [False] * (most - len(row)) for row in positions])
        return cls(index.to(device), real.to(device))

    @property
    def pooled(self) -> bool:
        """Whether any prompt has more than one position."""
        return self.index.shape[1] > 1


@dataclass(frozen=True, slots=True)
class Reduced:
    """What is left of a batch: vectors float32 [B, width], and int64 [B] each: the last position read (-1 if none), positions averaged, sinks left out."""

    vectors: Tensor
    token_index: Tensor
    kept: Tensor
    excluded: Tensor


def reduce(acts_BLD: Tensor, chosen: Chosen, sinks_BL: Tensor) -> Reduced:
    """Mean in float32 over the chosen positions of each prompt, sinks left out where there are several.

    Only chosen positions are touched, so what stands in the padding can't reach a vector.
    """
    rows = torch.arange(acts_BLD.shape[0], device=acts_BLD.device)[:, None]
    several = chosen.real.sum(dim=1, keepdim=True) > 1
    sinks_BK = chosen.real & several & sinks_BL[rows, chosen.index]
    kept_BK = chosen.real & ~sinks_BK
    n_kept = kept_BK.sum(dim=1)
    picked_BKD = acts_BLD[rows, chosen.index].to(torch.float32).masked_fill(~kept_BK[..., None], 0)
    vectors = picked_BKD.sum(dim=1) / n_kept.clamp(min=1)[:, None]
    last = torch.where(kept_BK, chosen.index, -1).amax(dim=1)
    return Reduced(vectors, last, n_kept, sinks_BK.sum(dim=1))
