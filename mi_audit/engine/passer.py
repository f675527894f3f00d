"""Batches through the model; less at a time where memory is short."""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mi_audit.engine.batches import Batch, Ids
from mi_audit.engine.cache import Kept
from mi_audit.engine.forward import Beginning, read_batch
from mi_audit.engine.listening import Listening
from mi_audit.engine.reduction import Reduced
from mi_audit.engine.site import Site
from mi_audit.errors import PromptError

if TYPE_CHECKING:
    from mi_audit.engine.passing import Work


class Passer:
    """Passes batches of one piece of work through its model. Remembers the last shared beginning, and what memory was too short for."""

    def __init__(self, work: "Work", listening: Listening) -> None:
        self._work, self._model, self._listening = work, work.model.loaded(), listening
        self._begun: tuple[Ids, tuple[Site, ...], Beginning] | None = None
        self._too_many: int | None = None

    def read(self, batch: Batch, sites: tuple[Site, ...]) -> dict[Site, Kept]:
        """Pass a batch through the model.

        A batch that does not fit into memory is halved, and so are from then on all that take more than half of its tokens (`Batch.tokens`). A packed batch
        with a number that is none passes again prompt by prompt: even where attention is zero it reaches its neighbours.

        Raises:
            PromptError: a prompt alone does not fit.
        """
        parts, results = deque([batch]), dict[int, dict[Site, Kept]]()
        while parts:
            part = parts.popleft()
            halves = part.halves()
            if halves is not None and self._too_many is not None and 2 * part.tokens(self._work.ids) > self._too_many:
                parts.extendleft(reversed(halves))
                continue
            try:
                read = self._pass(part, sites)
            except torch.OutOfMemoryError as error:
                if halves is None:
                    name, length = self._work.names[part.prompts[0]], len(self._work.ids[part.prompts[0]])
                    raise PromptError(
                        f"prompt {name!r} has {length} tokens, which alone don't fit into the memory of {self._model.device}; "
                        "shorten it, or give another --audit-device or --audit-dtype bfloat16"
                    ) from error
                self._too_many = part.tokens(self._work.ids)
                parts.extendleft(reversed(halves))
                continue
            if part.packed and not all(np.isfinite(kept.vectors).all() for kept in read.values()):
                parts.extendleft(reversed(part.alone()))
                continue
            for row, index in enumerate(part.prompts):
                results[index] = {site: _row(kept, row) for site, kept in read.items()}
        return {site: _joined([results[index][site] for index in batch.prompts]) for site in sites}

    def _pass(self, batch: Batch, sites: tuple[Site, ...]) -> dict[Site, Kept]:
        begun = self._beginning(batch.prefix, sites)
        reduced = read_batch(self._model, self._listening, batch, self._work.ids, self._work.positions_of(batch), sites, begun)
        return {site: _on_host(result) for site, result in reduced.items()}

    def _beginning(self, prefix: Ids, sites: tuple[Site, ...]) -> Beginning:
        """Of the last batch, where it began with the same tokens: those that do follow each other."""
        if self._begun is None or self._begun[:2] != (prefix, sites):
            self._begun = None  # its memory is free before the next takes some
            self._begun = prefix, sites, Beginning.of(self._model, self._listening, prefix, sites)
        return self._begun[2]


def _on_host(reduced: Reduced) -> Kept:
    return Kept(reduced.vectors.cpu().numpy(), reduced.token_index.cpu().numpy(), reduced.kept.cpu().numpy(), reduced.excluded.cpu().numpy())


def _row(kept: Kept, row: int) -> Kept:
    at = slice(row, row + 1)
    return Kept(kept.vectors[at], kept.token_index[at], kept.kept[at], kept.excluded[at])


def _joined(rows: Sequence[Kept]) -> Kept:
    return Kept(
        np.concatenate([row.vectors for row in rows]),
        np.concatenate([row.token_index for row in rows]),
        np.concatenate([row.kept for row in rows]),
        np.concatenate([row.excluded for row in rows]),
    )
