"""One batch of texts, token by token: rows filled up on the left, their keys and values, and the interventions on each row."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from mi_audit.engine.batches import Ids
from mi_audit.engine.intervening import Intervening, Step
from mi_audit.engine.interventions import Intervention
from mi_audit.engine.sampling import Sampling
from mi_audit.errors import NotFiniteError
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

LEAST_SHARED: Final = 8
"""Untouched columns before it is worth a pass of its own to compute them once for all variants of a prompt."""

LEAST_ENDED: Final = 0.25
"""Of the rows, before it is worth copying the keys and values of the others."""


@dataclass(frozen=True, eq=False)
class Treatment:
    """An intervention at a hook point, its layer absolute, on all rows of a batch or on those where `rows` bool [R] is True.

    Its parameters may differ by row, [R, …]. It has to fit any number of tokens per row.
    """

    at: At
    intervention: Intervention
    rows: Tensor | None = None


Interventions = Callable[[Tensor], Sequence[Treatment]]
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


class Writing:
    """The texts of a batch of rows, written side by side."""

    def __init__(
        self,
        model: "LoadedModel",
        intervening: Intervening,
        interventions: Interventions,
        rows: Sequence[Row],
        sampling: Sampling,
        ends: frozenset[int],
        *,
        on_generated: bool,
    ) -> None:
        self._model, self._intervening, self._interventions = model, intervening, interventions
        self._sampling, self._ends, self._on_generated = sampling, ends, on_generated
        self._rows = list(rows)
        self._cache = DynamicCache(config=model.hf.config)
        self._with_positions = "position_ids" in inspect.signature(model.hf.forward).parameters
        self._last_alone = "logits_to_keep" in inspect.signature(model.hf.forward).parameters

    def to_the_end(self) -> None:
        """Write until every text has ended."""
        self._treatments = self._treated()
        logits_RV = self._after_prompts()
        while True:
            tokens = self._chosen(logits_RV)
            for row, token in zip(self._rows, tokens, strict=True):
                if not row.ended:
                    if token in self._ends:
                        row.ended = True
                    else:
                        row.text.append(token)
                        row.ended = len(row.text) == self._sampling.max_new_tokens
            going = [number for number, row in enumerate(self._rows) if not row.ended]
            if not going:
                return
            if len(going) <= (1 - LEAST_ENDED) * len(self._rows):
                self._keep(going)
                tokens = [tokens[number] for number in going]
            logits_RV = self._after(tokens)

    def _treated(self) -> Sequence[Treatment]:
        return self._interventions(torch.tensor([row.variant for row in self._rows]))

    def _after_prompts(self) -> Tensor:
        """Pass the prompts: the logits [R, vocabulary] after each."""
        longest, device = max(len(row.ids) for row in self._rows), self._model.device
        left = [longest - len(row.ids) for row in self._rows]
        ids_RL = torch.tensor([[0] * pad + list(row.ids) for pad, row in zip(left, self._rows, strict=True)])
        self._real = torch.tensor([[0] * pad + [1] * len(row.ids) for pad, row in zip(left, self._rows, strict=True)])
        touched_RL = torch.zeros_like(ids_RL, dtype=torch.bool)
        for number, (pad, row) in enumerate(zip(left, self._rows, strict=True)):
            touched_RL[number, [pad + position for position in row.touched]] = True
        positions_RL = (self._real.cumsum(dim=1) - 1).clamp(min=0)
        ids_RL, positions_RL, self._real = (each.to(device) for each in (ids_RL, positions_RL, self._real))
        shared = min([longest - 1, *touched_RL.any(dim=0).nonzero()[:1, 0].tolist()])
        firsts = {row.ids: number for number, row in reversed(list(enumerate(self._rows)))}
        if shared < LEAST_SHARED or len(firsts) == len(self._rows):
            shared = 0
        else:
            chosen = list(firsts.values())
            self._model.base(**self._called(ids_RL[chosen, :shared], positions_RL[chosen, :shared], self._real[chosen, :shared]))
            places = {ids: place for place, ids in enumerate(firsts)}
            self._cache.batch_select_indices(torch.tensor([places[row.ids] for row in self._rows]))
        touched_RL = touched_RL[:, shared:]
        return self._passed(ids_RL[:, shared:], positions_RL[:, shared:], touched_RL if touched_RL.any() else None)

    def _after(self, tokens: Sequence[int]) -> Tensor:
        """Feed each row's token back in: the logits [R, vocabulary] after it."""
        self._real = torch.cat([self._real, torch.ones_like(self._real[:, :1])], dim=1)
        going_R1 = torch.tensor([[not row.ended] for row in self._rows])
        positions_R1 = self._real.sum(dim=1, keepdim=True) - 1
        return self._passed(torch.tensor(tokens, device=self._model.device)[:, None], positions_R1, going_R1 if self._on_generated else None)

    def _passed(self, ids_RL: Tensor, positions_RL: Tensor, touched_RL: Tensor | None) -> Tensor:
        called = self._called(ids_RL, positions_RL, self._real)
        if self._last_alone:
            called["logits_to_keep"] = 1
        steps = [] if touched_RL is None else [Step(each.at, _of(touched_RL, each.rows), each.intervention) for each in self._treatments]
        with self._intervening.applying(steps):
            logits_RV: Tensor = self._model.hf(**called).logits[:, -1]
            self._require_finite(logits_RV)
        return logits_RV

    def _called(self, ids_RL: Tensor, positions_RL: Tensor, real_RK: Tensor) -> dict[str, Any]:
        called = {"input_ids": ids_RL, "attention_mask": real_RK, "past_key_values": self._cache, "use_cache": True}
        return called | {"position_ids": positions_RL} if self._with_positions else called

    def _chosen(self, logits_RV: Tensor) -> list[int]:
        """The next token of each row; of one that has ended, any."""
        if self._sampling.greedy:
            greedy: list[int] = logits_RV.max(dim=-1).indices.tolist()  # of several the first
            return greedy
        host = logits_RV.to("cpu", torch.float64).numpy()
        return [0 if row.ended else self._sampling.draw(own, row.stream.random()) for row, own in zip(self._rows, host, strict=True)]

    def _keep(self, numbers: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self._rows = [self._rows[number] for number in numbers]
        kept = torch.tensor(numbers)
        self._cache.batch_select_indices(kept)
        self._real = self._real[kept.to(self._real.device)]
        self._treatments = self._treated()

    def _require_finite(self, logits_RV: Tensor) -> None:
        finite: list[bool] = logits_RV.sum(dim=-1, dtype=torch.float32).isfinite().tolist()
        for row, good in zip(self._rows, finite, strict=True):
            if not good and not row.ended:
                raise NotFiniteError(f"the logits under variant {row.variant} are not finite; take smaller strengths, or load the model in float32", row.variant)


def _of(touched_RL: Tensor, rows_R: Tensor | None) -> Tensor:
    return touched_RL if rows_R is None else touched_RL & rows_R.to(touched_RL.device)[:, None]
