"""From planned batches to results: out of the cache, through the model, or from the process beside this one. No torch before something has to pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mi_audit.engine.batches import Batch, Ids
from mi_audit.engine.cache import ActivationCache, Kept, batch_key, site_key
from mi_audit.engine.site import Site
from mi_audit.model.audited import AuditedModel
from mi_audit.plan.places import Tokens

if TYPE_CHECKING:
    from mi_audit.engine.passer import Passer


@dataclass
class Work:
    """What is to be read: of each prompt its tokens `ids`, per selection its `positions`, its `names` for messages; and where, at `sites`."""

    model: AuditedModel
    ids: Sequence[Ids]
    positions: Mapping[Tokens, Sequence[Sequence[int]]]
    names: Sequence[str]
    sites: tuple[Site, ...]
    cache: ActivationCache | None = None

    def keys(self, batch: Batch) -> dict[Site, str]:
        """The cache's keys of every site, for this batch."""
        return {site: site_key(site, self.positions_of(batch)[site.tokens]) for site in self.sites}

    @cached_property
    def widths(self) -> dict[Site, int]:
        """How many numbers an activation has at every site."""
        return {site: self.model.hook_points.resolve(site.at.point, site.at.layer).width for site in self.sites}

    def positions_of(self, batch: Batch) -> dict[Tokens, list[Sequence[int]]]:
        """The positions of every selection in the batch's prompts, in their order."""
        return {tokens: [each[index] for index in batch.prompts] for tokens, each in self.positions.items()}

    def read(self, batch: Batch, sites: tuple[Site, ...]) -> dict[Site, Kept]:
        """Pass a batch through the model, as `Passer.read`; the weights are loaded by the first."""
        return self._passer.read(batch, sites)

    @cached_property
    def _passer(self) -> "Passer":
        from mi_audit.engine.passer import Passer

        return Passer(self)


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
