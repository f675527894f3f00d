"""From planned batches to results: out of the cache, through the model, or from the process beside this one. No torch before something has to pass."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mi_audit.engine.batches import DEFAULT_BUDGET, Batch, Ids
from mi_audit.engine.cache import ActivationCache, Kept, batch_key, site_key
from mi_audit.engine.site import Site
from mi_audit.model.audited import AuditedModel
from mi_audit.plan.places import Tokens

if TYPE_CHECKING:
    from mi_audit.engine.workers import Workers


def width_at(model: AuditedModel, site: Site) -> int:
    """How many numbers a prompt's vector has at a site. Raises HookPointError where the model has no such hook point."""
    width = model.hook_points.resolve(site.at.point, site.at.layer).width
    return width if site.encoding is None else site.encoding.width


Result = tuple[Batch, dict[Site, Kept], bool]
"""A batch, what was read of it, and whether it passed through the model here."""


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
        """How many numbers a prompt's vector has at every site."""
        return {site: width_at(self.model, site) for site in self.sites}

    def is_large(self, batch: Batch) -> bool:
        """Whether a batch is one prompt that is longer than what is meant to pass beside others: it passes alone."""
        return len(batch.prompts) == 1 and batch.tokens(self.ids) > DEFAULT_BUDGET and self.model.memory_left is None

    def positions_of(self, batch: Batch) -> dict[Tokens, list[Sequence[int]]]:
        """The positions of every selection in the batch's prompts, in their order."""
        return {tokens: [each[index] for index in batch.prompts] for tokens, each in self.positions.items()}


def work_through(work: Work, batches: Sequence[Batch]) -> Generator[Result]:
    """Each batch with its results: those that pass through the model in their order. With a cache, what another process is passing comes last.

    Whoever does not take all closes it: passes are under way, and batches locked.

    Raises:
        PromptError: as `Passer.read`; of several batches under way that can't pass the first in order is told.
    """
    through = _Through(work)
    try:
        waiting = []
        for batch in batches:
            large = work.is_large(batch)
            yield from through.ended(every=large)
            if not through.begin(batch, wait=False):
                waiting.append(batch)
            yield from through.ended(every=large)
        yield from through.ended(every=True)  # before another process is waited for, which may wait for these
        for batch in waiting:
            through.begin(batch, wait=True)
            yield from through.ended(every=True)
    finally:
        through.close()


class _Through:
    """The batches that are under way, in their order; those that have to pass are locked in the cache until they are kept."""

    def __init__(self, work: Work) -> None:
        self._work, self._cache, self._ending = work, work.cache, ExitStack()
        self._known: list[Result] = []
        self._passing: deque[tuple[Batch, dict[Site, Kept], Future[dict[Site, Kept]]]] = deque()
        self._locked: dict[Batch, str] = {}

    def begin(self, batch: Batch, *, wait: bool) -> bool:
        """Look a batch up, or have it pass; False if another process has it and is not waited for."""
        found = {} if wait else self._look_up(batch)
        if len(found) < len(self._work.sites) and self._cache is not None:
            key = batch_key(batch, self._work.ids)
            if wait:
                self._cache.wait_lock(key)
            elif not self._cache.try_lock(key):
                return False
            self._locked[batch] = key
            found = self._look_up(batch)  # once more: it may have been kept since
        lacking = tuple(site for site in self._work.sites if site not in found)
        if lacking:
            self._passing.append((batch, found, self._workers.start(batch, lacking)))
        else:
            self._unlock(batch)
            self._known.append((batch, found, False))
        return True

    def ended(self, *, every: bool = False) -> Iterator[Result]:
        """What is known, and what has passed: so much that one batch waits for each that is passing, or every batch."""
        while self._known:
            yield self._known.pop()
        while self._passing and (every or len(self._passing) >= 2 * self._workers.number):
            batch, found, passing = self._passing.popleft()
            fresh = passing.result()
            self._keep(batch, fresh)
            self._unlock(batch)
            yield batch, found | fresh, True

    def close(self) -> None:
        """End what is under way, keep what has passed, and let the batches go."""
        try:
            self._ending.close()
            for batch, _, passing in self._passing:
                if passing.done() and not passing.cancelled() and passing.exception() is None:
                    self._keep(batch, passing.result())
        finally:
            for batch in list(self._locked):
                self._unlock(batch)

    @cached_property
    def _workers(self) -> "Workers":
        """What passes batches through the model; the weights are loaded by the first that has to."""
        from mi_audit.engine.workers import Workers

        return self._ending.enter_context(closing(Workers(self._work)))

    def _look_up(self, batch: Batch) -> dict[Site, Kept]:
        if self._cache is None:
            return {}
        return self._cache.read(batch_key(batch, self._work.ids), self._work.keys(batch), len(batch.prompts), self._work.widths)

    def _keep(self, batch: Batch, fresh: Mapping[Site, Kept]) -> None:
        if self._cache is not None:
            self._cache.keep(self._locked[batch], self._work.keys(batch), fresh)

    def _unlock(self, batch: Batch) -> None:
        key = self._locked.pop(batch, None)
        if key is not None and self._cache is not None:
            self._cache.unlock(key)
