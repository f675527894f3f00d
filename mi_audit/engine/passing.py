"""From planned batches to results: out of the cache, through the model, or from the process beside this one; less at a time where memory is short."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from mi_audit.engine.batches import Batch, Ids
from mi_audit.engine.cache import ActivationCache, Kept, batch_key, site_key
from mi_audit.engine.forward import Beginning, read_batch
from mi_audit.engine.reduction import Reduced
from mi_audit.engine.site import Site
from mi_audit.errors import PromptError
from mi_audit.plan.places import Tokens

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel


@dataclass
class Work:
    """What is to be read: of each prompt its tokens `ids`, per selection its `positions`, its `names` for messages; and where, at `sites`."""

    model: "LoadedModel"
    ids: Sequence[Ids]
    positions: Mapping[Tokens, Sequence[Sequence[int]]]
    names: Sequence[str]
    sites: tuple[Site, ...]
    cache: ActivationCache | None = None
    _begun: tuple[Ids, tuple[Site, ...], Beginning] | None = None
    _too_many: int | None = None

    def keys(self, batch: Batch) -> dict[Site, str]:
        """The cache's keys of every site, for this batch."""
        return {site: site_key(site, self._positions_of(batch)[site.tokens]) for site in self.sites}

    @cached_property
    def widths(self) -> dict[Site, int]:
        """How many numbers an activation has at every site."""
        return {site: self.model.hook_points.resolve(site.at.point, site.at.layer).width for site in self.sites}

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
            if halves is not None and self._too_many is not None and 2 * part.tokens(self.ids) > self._too_many:
                parts.extendleft(reversed(halves))
                continue
            try:
                read = self._pass(part, sites)
            except torch.OutOfMemoryError as error:
                if halves is None:
                    index = part.prompts[0]
                    raise PromptError(
                        f"prompt {self.names[index]!r} has {len(self.ids[index])} tokens, which alone don't fit into the memory of {self.model.device}; "
                        "shorten it, or give another --audit-device or --audit-dtype bfloat16"
                    ) from error
                self._too_many = part.tokens(self.ids)
                parts.extendleft(reversed(halves))
                continue
            if part.packed and not all(np.isfinite(kept.vectors).all() for kept in read.values()):
                parts.extendleft(reversed(part.alone()))
                continue
            for row, index in enumerate(part.prompts):
                results[index] = {site: _row(kept, row) for site, kept in read.items()}
        return {site: _joined([results[index][site] for index in batch.prompts]) for site in sites}

    def _pass(self, batch: Batch, sites: tuple[Site, ...]) -> dict[Site, Kept]:
        reduced = read_batch(self.model, batch, self.ids, self._positions_of(batch), sites, self._beginning(batch.prefix, sites))
        return {site: _on_host(result) for site, result in reduced.items()}

    def _beginning(self, prefix: Ids, sites: tuple[Site, ...]) -> Beginning:
        """Of the last batch, where it began with the same tokens: those that do follow each other."""
        if self._begun is None or self._begun[:2] != (prefix, sites):
            self._begun = None  # its memory is free before the next takes some
            self._begun = prefix, sites, Beginning.of(self.model, prefix, sites)
        return self._begun[2]

    def _positions_of(self, batch: Batch) -> dict[Tokens, list[Sequence[int]]]:
        return {tokens: [each[index] for index in batch.prompts] for tokens, each in self.positions.items()}


def work_through(work: Work, batches: Sequence[Batch]) -> Iterator[tuple[Batch, dict[Site, Kept], bool]]:
    """Each batch with its results, and whether it passed through the model here. With a cache, what another process is passing comes last."""
    cache = work.cache
    if cache is None:
        for batch in batches:
            yield batch, work.read(batch, work.sites), True
        return
    waiting: list[Batch] = []
    for batch in batches:
        key = batch_key(batch, work.ids)
        found = cache.read(key, work.keys(batch), len(batch.prompts), work.widths)
        if len(found) == len(work.sites):
            yield batch, found, False
        elif cache.try_lock(key):
            yield batch, *_complete(work, cache, batch, key)
        else:
            waiting.append(batch)
    for batch in waiting:
        key = batch_key(batch, work.ids)
        cache.wait_lock(key)
        yield batch, *_complete(work, cache, batch, key)


def _complete(work: Work, cache: ActivationCache, batch: Batch, key: str) -> tuple[dict[Site, Kept], bool]:
    """Read what the cache lacks of a batch that this process has locked, and keep it."""
    try:
        keys = work.keys(batch)
        found = cache.read(key, keys, len(batch.prompts), work.widths)
        lacking = tuple(site for site in work.sites if site not in found)
        if lacking:
            fresh = work.read(batch, lacking)
            cache.keep(key, keys, fresh)
            found.update(fresh)
        return found, bool(lacking)
    finally:
        cache.unlock(key)


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
