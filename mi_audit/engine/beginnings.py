"""Prompts passed before texts are written after them: what no variant touches once for each prompt, the rest for every row; little of it is padding."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from mi_audit.engine.batches import Ids
from mi_audit.engine.kept import roomy
from mi_audit.engine.rows import Columns, Row, RowPasses

LEAST_SHARED: Final = 8
"""Untouched tokens before it is worth a pass of their own to have them once for all variants of a prompt."""

ALIKE: Final = 0.75
"""Of the longest in a pass, what the shortest has at least, give or take a token."""

Kept = list[tuple[Tensor, Tensor]]
"""Keys and values [R, heads, K, d] in every block, filled up on the left."""


def begun(passes: RowPasses, rows: Sequence[Row]) -> tuple[DynamicCache, Tensor, Tensor]:
    """Pass the prompts of rows: keys and values, filled up on the left; which of these are tokens, int64 [R, K]; and the logits [R, vocabulary] after each.

    Raises:
        NotFiniteError, HookPointError: as `RowPasses.logits`.
    """
    widths = [_own(row) for row in rows]
    groups = _alike(widths)
    parts = [_group([rows[number] for number in group], max(widths[number] for number in group), passes) for group in groups]
    order = torch.tensor([number for group in groups for number in group]).argsort()
    longest = max(len(row.ids) for row in rows)
    cache = roomy(_joined([kept for kept, _ in parts], longest, order))
    logits = torch.cat([logits for _, logits in parts])
    return cache, _real([row.ids for row in rows], longest).to(passes.model.device), logits[order.to(logits.device)]


def _own(row: Row) -> int:
    """Tokens at the prompt's end that pass for each row: those from the first that is touched on, the last at least."""
    return len(row.ids) - min([*row.touched, len(row.ids) - 1])


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Groups of indices of similar lengths."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and lengths[index] >= ALIKE * longest - 1:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _group(rows: Sequence[Row], own: int, passes: RowPasses) -> tuple[Kept, Tensor]:
    """Keys and values of the rows' prompts, and the logits after them; the last `own` tokens of each row pass with what is applied to it."""
    longest = max(0, *(len(row.ids) - own for row in rows))
    if longest < LEAST_SHARED:
        own, longest = own + longest, 0
    before = list(dict.fromkeys(row.ids[:-own] for row in rows))
    cache = DynamicCache()
    if longest:
        groups = _alike([len(ids) for ids in before])
        place = {before[number]: at for at, number in enumerate(number for group in groups for number in group)}
        kept = [_shared([before[number] for number in group], passes) for group in groups]
        cache = DynamicCache(_joined(kept, longest, torch.tensor([place[row.ids[:-own]] for row in rows])))
    ids = [row.ids for row in rows]
    columns = _columns(ids, longest + own, passes)
    columns.ids, columns.positions = columns.ids[:, longest:], columns.positions[:, longest:]
    columns.touched = _touched(rows, columns.ids.shape[1]).to(passes.model.device) if any(row.touched for row in rows) else None
    logits = passes.logits(rows, passes.treatments(rows), columns, cache)
    return _kept(cache), logits


def _shared(prompts: Sequence[Ids], passes: RowPasses) -> Kept:
    """Keys and values of the beginnings of prompts, which nothing touches."""
    cache = DynamicCache()
    passes.keep(_columns(prompts, max(1, *map(len, prompts)), passes), cache)  # one column of nothing where all are empty
    return _kept(cache)


def _columns(prompts: Sequence[Ids], width: int, passes: RowPasses) -> Columns:
    device = passes.model.device
    real = _real(prompts, width)
    ids = torch.tensor([[0] * (width - len(each)) + list(each) for each in prompts])
    return Columns(ids.to(device), (real.cumsum(dim=1) - 1).clamp(min=0).to(device), None, real.to(device))


def _real(prompts: Sequence[Ids], width: int) -> Tensor:
    return torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])


def _touched(rows: Sequence[Row], width: int) -> Tensor:
    """Which of the last tokens of each row are touched, bool [R, width]."""
    touched = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        touched[number, [position - len(row.ids) for position in row.touched]] = True
    return touched


def _kept(cache: DynamicCache) -> Kept:
    return [(keys, values) for keys, values, *_ in cache]


def _joined(parts: Sequence[Kept], width: int, chosen: Tensor) -> Kept:
    """The chosen rows of several batches' keys and values, filled up on the left to one width."""

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(each, (0, 0, width - each.shape[2], 0)) for each in tensors])[chosen]

    return [(joined([keys for keys, _ in block]), joined([values for _, values in block])) for block in zip(*parts, strict=True)]
