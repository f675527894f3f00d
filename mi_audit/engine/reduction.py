"""From the activations of a batch to one vector per prompt, on the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mi_audit.engine.layout import Layout
from mi_audit.model.sinks import sink_mask, token_norms

AT_A_TIME: Final = 1024
"""Tokens that are encoded together: an encoder may make many numbers of each."""


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


@dataclass(frozen=True, slots=True)
class Activations:
    """What stood at a hook point: of the shared tokens [shared, width], and of the rows [R, L, width], laid out as `layout` says."""

    layout: Layout
    before: Tensor
    acts: Tensor

    def sinks(self) -> Tensor:
        """True [B, T] where a prompt's token is an attention sink."""
        norms = torch.cat([token_norms(self.before), token_norms(self.acts).flatten()])
        return sink_mask(norms[self.layout.index], self.layout.real)

    def at(self, index_BK: Tensor) -> Tensor:
        """The activations float32 [B, K, width] of each prompt's tokens at those positions."""
        where = self.layout.index.gather(1, index_BK)
        flat_D = self.acts.flatten(end_dim=1)
        picked = flat_D[(where - self.layout.shared).clamp(min=0)]
        if self.layout.shared:
            picked = torch.where((where < self.layout.shared)[..., None], self.before[where.clamp(max=self.layout.shared - 1)], picked)
        return picked.to(torch.float32)


def reduce(acts: Activations, chosen: Chosen, sinks_BT: Tensor | None, encode: Callable[[Tensor], Tensor] | None = None, *, highest: bool = False) -> Reduced:
    """Mean in float32 over the chosen positions of each prompt, or the highest of each number, sinks left out where there are several positions.

    Only chosen positions are touched, so what stands beside a prompt can't reach its vector. `sinks_BT` may be None where no prompt has several. `encode` makes
    of activations [N, width] what is reduced.
    """
    several = chosen.real.sum(dim=1, keepdim=True) > 1
    sinks_BK = chosen.real & several & sinks_BT.gather(1, chosen.index) if sinks_BT is not None else torch.zeros_like(chosen.real)
    kept_BK = chosen.real & ~sinks_BK
    n_kept = kept_BK.sum(dim=1)
    values = acts.at(chosen.index)
    if encode is not None:
        values = _encoded(values, kept_BK, encode)
    if highest:
        vectors = values.masked_fill(~kept_BK[..., None], -torch.inf).amax(dim=1).masked_fill(n_kept[:, None] == 0, 0)
    else:
        vectors = values.masked_fill(~kept_BK[..., None], 0).sum(dim=1) / n_kept.clamp(min=1)[:, None]
    last = torch.where(kept_BK, chosen.index, -1).amax(dim=1)
    return Reduced(vectors, last, n_kept, sinks_BK.sum(dim=1))


def _encoded(acts_BKD: Tensor, kept_BK: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """The activations that are kept, encoded a few at a time; 0 elsewhere."""
    encoded_NM = torch.cat([encode(part_ND) for part_ND in torch.split(acts_BKD[kept_BK], AT_A_TIME)])
    values = encoded_NM.new_zeros((*kept_BK.shape, encoded_NM.shape[-1]))
    values[kept_BK] = encoded_NM
    return values
