"""Rows of a batch whose interventions differ, and passes of such rows with keys and values that are kept."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from mi_audit.engine.batches import Ids
from mi_audit.engine.intervening import Intervening, Step
from mi_audit.engine.interventions import Intervention
from mi_audit.errors import NotFiniteError
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel


@dataclass(frozen=True, eq=False)
class Treatment:
    """An intervention at a hook point, its layer absolute, on all rows of a batch or on those where `rows` bool [R] is True.

    Its parameters may differ by row, [R, …]. It has to fit any number of tokens per row.
    """

    at: At
    intervention: Intervention
    rows: Tensor | None = None


Treatments = Callable[[Tensor], Sequence[Treatment]]
"""From the variant int64 [R] of each row, on the host, to what is applied to them, in this order where at one place. A row that none holds is left alone to
the last bit."""


@dataclass(eq=False)
class Row:
    """A text under way: its prompt's tokens `ids`, the positions among them that are touched, its variant, its random numbers, and what was generated."""

    ids: Ids
    touched: Sequence[int]
    variant: int
    stream: np.random.Generator
    text: list[int] = field(default_factory=list)
    ended: bool = False


@dataclass(eq=False)
class Columns:
    """Tokens of rows, filled up on the left: `ids`, `positions` and `touched` [R, L], and `real` [R, K], which of them and of those kept before are tokens."""

    ids: Tensor
    positions: Tensor
    touched: Tensor | None
    real: Tensor


class RowPasses:
    """Passes of rows through a model, with what is applied to each."""

    def __init__(self, model: "LoadedModel", intervening: Intervening, interventions: Treatments) -> None:
        self.model, self._intervening, self._interventions = model, intervening, interventions
        taken = inspect.signature(model.hf.forward).parameters
        self._with_positions, self._last_alone = "position_ids" in taken, "logits_to_keep" in taken

    def treatments(self, rows: Sequence[Row]) -> Sequence[Treatment]:
        """What is applied to the rows."""
        return self._interventions(torch.tensor([row.variant for row in rows]))

    def keep(self, columns: Columns, cache: DynamicCache) -> None:
        """Pass tokens as they are, no further than to add their keys and values to the cache."""
        self.model.base(**self._called(columns, cache))

    def logits(self, rows: Sequence[Row], treatments: Sequence[Treatment], columns: Columns, cache: DynamicCache) -> Tensor:
        """Pass tokens, the treatments applied to those that are touched: the logits [R, vocabulary] after the last of each row.

        Raises:
            NotFiniteError: those of a row that has not ended are not.
            HookPointError: an intervention does not fit.
        """
        called = self._called(columns, cache)
        if self._last_alone:
            # an index gives rows that lie side by side; a slice would not, and the LM head would be read once for each
            called["logits_to_keep"] = torch.tensor([columns.ids.shape[1] - 1], device=columns.ids.device)
        steps = [] if columns.touched is None else [Step(each.at, _of(columns.touched, each.rows), each.intervention) for each in treatments]
        with self._intervening.applying(steps):
            logits_RV: Tensor = self.model.hf(**called).logits[:, -1]
            finite: list[bool] = logits_RV.sum(dim=-1, dtype=torch.float32).isfinite().tolist()
            for row, good in zip(rows, finite, strict=True):
                if not good and not row.ended:
                    message = f"the logits under variant {row.variant} are not finite; take smaller strengths, or load the model in float32"
                    raise NotFiniteError(message, row.variant)
        return logits_RV

    def _called(self, columns: Columns, cache: DynamicCache) -> dict[str, Any]:
        called = {"input_ids": columns.ids, "attention_mask": columns.real, "past_key_values": cache, "use_cache": True}
        return called | {"position_ids": columns.positions} if self._with_positions else called


def _of(touched_RL: Tensor, rows_R: Tensor | None) -> Tensor:
    return touched_RL if rows_R is None else touched_RL & rows_R.to(touched_RL.device)[:, None]
