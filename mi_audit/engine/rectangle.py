"""Variants of one prompt as the rows of a rectangle: what they share is taken from one pass of the prompt as it is, and the rest is passed for each."""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache

from mi_audit.engine.batches import Ids
from mi_audit.engine.forking import Kept
from mi_audit.engine.sharing import Session
from mi_audit.model.packing import reaches
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

LEAST_SHARED: Final = 8
"""Tokens at the beginning whose keys and values are worth keeping."""


@dataclass(frozen=True, eq=False)
class Looked:
    """What is read of each pass: the logits at some positions of the prompt, of K, or the activations at a hook point, its layer absolute."""

    positions: tuple[int, ...]
    at: At | None

    def of(self, model: "LoadedModel", session: Session, called: dict[str, Any], start: int) -> Tensor:
        """A pass of rows that hold the prompt's tokens from `start` on, no further than need be: [R, K, vocabulary or width] float32 on the model's device."""
        where = [position - start for position in self.positions]
        with session.passes.one():
            if self.at is not None:
                heard: list[Tensor] = []
                session.listening.pass_through({self.at}, called, lambda _, acts_RLD: heard.append(acts_RLD[:, where].clone()))
                return heard[0].to(model.device, torch.float32)
            kept = {"logits_to_keep": torch.tensor(where)} if "logits_to_keep" in inspect.signature(model.hf.forward).parameters else {}
            logits: Tensor = model.hf(**called, **kept).logits
            return (logits if kept else logits[:, where]).to(model.device, torch.float32)


@dataclass(frozen=True, eq=False)
class Rectangle:
    """The prompt `ids` [T], passed as it is, for rows that hold its tokens from `start` on.

    Attributes:
        base: what is read of that pass [K, vocabulary or width] float32.
        kept: what the last of the blocks gave that the rows skip; None where they skip none.
        past: keys and values of the tokens before `start` in each block that was passed; None where the rows hold all tokens.
    """

    model: "LoadedModel"
    session: Session
    ids: Tensor
    start: int
    looked: Looked
    base: Tensor
    kept: Kept | None
    past: DynamicCache | None

    @classmethod
    def of(cls, model: "LoadedModel", session: Session, ids: Ids, start: int, looked: Looked) -> "Rectangle":
        """Pass the prompt as it is, as far as something is read of it.

        Raises:
            HookPointError: the pass did not come by a hook point.
            torch.OutOfMemoryError: it does not fit into the device's memory.
        """
        tokens = torch.tensor(ids, device=model.device)
        past = DynamicCache() if start else None
        called = {"input_ids": tokens[None], "use_cache": past is not None, "past_key_values": past}
        with session.fork.keeping() as kept:
            base_1KW = looked.of(model, session, called if past is not None else {"input_ids": tokens[None], "use_cache": False}, 0)
        return cls(model, session, tokens, start, looked, base_1KW[0], kept[0] if kept else None, past)

    @property
    def width(self) -> int:
        """How many tokens a row holds."""
        return len(self.ids) - self.start

    def mask(self, touched: Sequence[int], rows: int) -> Tensor:
        """True at those positions of the prompt, [rows, width]."""
        mask_L = torch.zeros(self.width, dtype=torch.bool, device=self.ids.device)
        mask_L[[position - self.start for position in touched]] = True
        return mask_L.expand(rows, -1)

    def passed(self, rows: int) -> Tensor:
        """What is read of so many rows [rows, K, vocabulary or width] float32, with what the session's interventions change in them.

        Raises:
            HookPointError: as `Rectangle.of`.
            torch.OutOfMemoryError: the rows do not fit into the device's memory.
        """
        called: dict[str, Any] = {"input_ids": self.ids[self.start :].repeat(rows, 1), "use_cache": False}
        if self.past is not None:
            called["past_key_values"] = DynamicCache([(self._before(keys, rows), self._before(values, rows)) for keys, values, *_ in self.past])
            if "position_ids" in inspect.signature(self.model.base.forward).parameters:
                called["position_ids"] = torch.arange(self.start, len(self.ids), device=self.ids.device).expand(rows, -1)
        skipped: AbstractContextManager[None] = nullcontext()
        if self.kept is not None:
            skipped = self.session.fork.skipping(self.kept.rows(rows, self.start))
        with skipped:
            return self.looked.of(self.model, self.session, called, self.start)

    def _before(self, states_1HTD: Tensor, rows: int) -> Tensor:
        return states_1HTD[:, :, : self.start].expand(rows, -1, -1, -1)


def start_of(model: "LoadedModel", tokens: int, first: int) -> int:
    """Where the rows of a prompt of so many tokens begin, of which none before `first` is touched or read: there, or at 0 where that is not worth it or
    local attention reaches less far than the prompt is long."""
    return first if first >= LEAST_SHARED and tokens <= min((*reaches(model.config), tokens)) else 0


def blocks_below(at: At) -> int:
    """How many blocks give nothing that a change at the hook point, its layer absolute, would reach."""
    if at.layer is None:
        return 0
    return at.layer + 1 if at.point == "resid_post" else at.layer
