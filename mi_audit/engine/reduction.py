"""From the activations of a batch to one vector per prompt, on the device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mi_audit.engine.layout import Layout
from mi_audit.engine.site import Encoding
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
        """True [B, T] where a prompt's token is an attention sink, as far as its norm here tells (`HookMap.sinks_seen_at`)."""
        norms = torch.cat([token_norms(self.before), token_norms(self.acts).flatten()])
        return sink_mask(norms[self.layout.index], self.layout.real)

    def whole(self) -> Tensor:
        """The activations float32 [B, T, width] of all tokens of each prompt, filled up on the right with ones, which every normalisation bears."""
        prompts_B, tokens_T = self.layout.real.shape
        every_BT = torch.arange(tokens_T, device=self.layout.real.device).expand(prompts_B, -1)
        return self.at(every_BT).masked_fill(~self.layout.real[..., None], 1)

    def at(self, index_BK: Tensor) -> Tensor:
        """The activations float32 [B, K, width] of each prompt's tokens at those positions."""
        where = self.layout.index.gather(1, index_BK)
        flat_D = self.acts.flatten(end_dim=1)
        picked = flat_D[(where - self.layout.shared).clamp(min=0)]
        if self.layout.shared:
            picked = torch.where((where < self.layout.shared)[..., None], self.before[where.clamp(max=self.layout.shared - 1)], picked)
        return picked.to(torch.float32)


@dataclass(frozen=True, slots=True)
class Selected:
    """The activations `acts` float32 [N, width] of those of the `chosen` tokens that are `kept` bool [B, K]; attention sinks among several are not."""

    acts: Tensor
    chosen: Chosen
    kept: Tensor

    @classmethod
    def of(cls, acts: Activations, chosen: Chosen, sinks_BT: Tensor | None) -> "Selected":
        """`sinks_BT` may be None where no prompt has several. Only chosen positions are touched, so what stands beside a prompt can't reach its vector."""
        kept = chosen.real
        if sinks_BT is not None:
            several = chosen.real.sum(dim=1, keepdim=True) > 1
            kept = kept & ~(several & sinks_BT.gather(1, chosen.index))
        return cls(acts.at(chosen.index)[kept], chosen, kept)

    def reduce(self, values_NM: Tensor, *, highest: bool = False) -> Reduced:
        """Mean in float32 over each prompt's tokens of what they are, or were made into, or the highest of each number; 0 where none is kept."""
        n_kept = self.kept.sum(dim=1)
        values = values_NM.new_full((*self.kept.shape, values_NM.shape[-1]), -torch.inf if highest else 0)
        values[self.kept] = values_NM
        pooled = values.amax(dim=1) if highest else values.sum(dim=1) / n_kept.clamp(min=1)[:, None]
        last = torch.where(self.kept, self.chosen.index, -1).amax(dim=1)
        return Reduced(pooled.masked_fill(n_kept[:, None] == 0, 0), last, n_kept, self.chosen.real.sum(dim=1) - n_kept)


def encoded(acts_ND: Tensor, encodings: Sequence[Encoding], made: Mapping[Encoding, Tensor] | None = None) -> list[Tensor]:
    """What each encoding makes of the activations [N, m], a few tokens at a time; a stem that several have is computed once for all of them.

    `made` holds what was made of these tokens [N, ·] by encodings and stems that look at whole prompts.
    """
    functions = [each.on(acts_ND.device) for each in encodings]
    parts: list[list[Tensor]] = [[] for _ in encodings]
    split = {each: torch.split(values, AT_A_TIME) for each, values in (made or {}).items()}
    for number, part_ND in enumerate(torch.split(acts_ND, AT_A_TIME)):
        known = {each: values[number] for each, values in split.items()}
        for each, function, found in zip(encodings, functions, parts, strict=True):
            if each.stem is not None and each.stem not in known:
                known[each.stem] = each.stem.on(part_ND.device)(part_ND)
            found.append(known[each] if each in known else function(part_ND if each.stem is None else known[each.stem]))
    return [torch.cat(found) for found in parts]


def of_whole_prompts(acts: Activations, encode: Callable[[Tensor], Tensor], selections: Sequence[Selected]) -> list[Tensor]:
    """What an encoding that looks at whole prompts makes of the tokens that each selection keeps [N, m], a few prompts at a time."""
    acts_BTD = acts.whole()
    at_a_time = max(1, AT_A_TIME // acts_BTD.shape[1])
    parts: list[list[Tensor]] = [[] for _ in selections]
    for start in range(0, len(acts_BTD), at_a_time):
        rows = slice(start, start + at_a_time)
        values_BTM = encode(acts_BTD[rows])
        prompt_B1 = torch.arange(len(values_BTM), device=values_BTM.device)[:, None]
        for selected, found in zip(selections, parts, strict=True):
            found.append(values_BTM[prompt_B1, selected.chosen.index[rows]][selected.kept[rows]])
    return [torch.cat(found) for found in parts]
