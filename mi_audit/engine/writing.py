"""The texts of a batch of rows, written side by side, token by token."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from mi_audit.engine.beginnings import begun
from mi_audit.engine.rows import Columns, Row, RowPasses
from mi_audit.engine.sampling import Sampling

LEAST_ENDED: Final = 0.25
"""Of the rows, before it is worth copying the keys and values of the others."""


def write(passes: RowPasses, rows: Sequence[Row], sampling: Sampling, ends: frozenset[int], *, on_generated: bool) -> None:
    """Write the text of every row, up to a token of `ends` or as long as it may become.

    Raises:
        NotFiniteError, HookPointError: as `RowPasses.logits`.
    """
    rows = list(rows)
    cache, real_RK, logits_RV = begun(passes, rows)
    treatments = passes.treatments(rows)
    while True:
        tokens = _chosen(rows, logits_RV, sampling)
        for row, token in zip(rows, tokens, strict=True):
            _take(row, token, sampling, ends)
        going = [number for number, row in enumerate(rows) if not row.ended]
        if not going:
            return
        if len(going) <= (1 - LEAST_ENDED) * len(rows):
            kept = torch.tensor(going)
            rows, tokens, real_RK = [rows[number] for number in going], [tokens[number] for number in going], real_RK[kept.to(real_RK.device)]
            cache.batch_select_indices(kept)
            treatments = passes.treatments(rows)
        real_RK = torch.cat([real_RK, torch.ones_like(real_RK[:, :1])], dim=1)
        touched_R1 = torch.tensor([[not row.ended] for row in rows]) if on_generated else None
        columns = Columns(torch.tensor(tokens, device=real_RK.device)[:, None], real_RK.sum(dim=1, keepdim=True) - 1, touched_R1, real_RK)
        logits_RV = passes.logits(rows, treatments, columns, cache)


def _chosen(rows: Sequence[Row], logits_RV: Tensor, sampling: Sampling) -> list[int]:
    """The next token of each row; of one that has ended, any."""
    if sampling.greedy:
        greedy: list[int] = logits_RV.max(dim=-1).indices.tolist()  # of equals the first
        return greedy
    host = logits_RV.to("cpu", torch.float64).numpy()
    return [0 if row.ended else sampling.draw(own, row.stream.random()) for row, own in zip(rows, host, strict=True)]


def _take(row: Row, token: int, sampling: Sampling, ends: frozenset[int]) -> None:
    if row.ended:
        return
    if token in ends:
        row.ended = True
        return
    row.text.append(token)
    row.ended = len(row.text) == sampling.max_new_tokens
