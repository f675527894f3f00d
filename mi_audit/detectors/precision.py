"""How far the scores of a model in low precision are from those that float32 would give: measured, on a sample of each reading's prompts."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np

from mi_audit.detectors.activations import ActivationStore, Request
from mi_audit.detectors.controls import stream
from mi_audit.detectors.learned import Fitted
from mi_audit.detectors.progress import as_one
from mi_audit.detectors.readings import ReadingData
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.progress import Progress
from mi_audit.engine.site import Site
from mi_audit.errors import DetectorError, MiAuditError
from mi_audit.model.audited import AuditedModel
from mi_audit.plan.measurements import ReadSpec
from mi_audit.stats.spread import Spread

SAMPLE: Final = 512
"""Prompts of each reading, or all where there are fewer."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A reading with the detector that scored it."""

    reading: ReadingData
    detector: Fitted

    @property
    def site(self) -> Site:
        """Where the detector looked."""
        return self.detector.site


class Precision:
    """The spreads of the readings of one model in low precision, each measured once.

    A spread is the largest difference, on a sample of the reading's prompts that follows from the seed, between its scores and those of the same detector on
    the activations of the same checkpoint in float32.
    """

    def __init__(self, model: AuditedModel, seed: int, cache: ActivationCache | None = None, progress: Progress | None = None) -> None:
        self._model, self._seed, self._cache, self._progress = model, seed, cache, progress
        self._failed: MiAuditError | None = None
        self._found: dict[ReadSpec, Spread | MiAuditError] = {}

    def __contains__(self, spec: ReadSpec) -> bool:
        return self._failed is not None or spec in self._found

    def __getitem__(self, spec: ReadSpec) -> Spread:
        """The spread of a reading that was measured.

        Raises:
            ModelError: the float32 model can't be loaded; it is not tried again.
            HookPointError, PromptError, DetectorError: the sample can't be read on it, or a score on it is not finite.
        """
        found = self._failed or self._found[spec]
        if isinstance(found, MiAuditError):
            raise found
        return found

    def measure(self, readings: Iterable[Scored]) -> None:
        """Measure the readings. The float32 model is loaded for this, passed through once for all of them, and let go."""
        try:
            self._compare([_Sample.of(each, self._seed) for each in readings])
        except MiAuditError as error:
            self._failed = error
        from mi_audit.model.devices import reclaim

        reclaim()

    def _compare(self, samples: Sequence["_Sample"]) -> None:
        from mi_audit.model.load import in_float32

        exact = in_float32(self._model.loaded(), progress=self._progress is not None)
        store = ActivationStore(exact, None if self._cache is None else ActivationCache.of(exact, self._cache.folder.parent))
        requests = [sample.request for sample in samples]
        with as_one(self._progress, store.missing(requests)) as progress, suppress(MiAuditError):  # found again below, by the reading that it concerns
            store.fetch(requests, progress=progress)
        for sample in samples:
            reading = sample.scored.reading
            try:
                store.fetch([sample.request])
                self._found[reading.spec] = Spread(self._model.identity.dtype, sample.difference(store), len(sample.rows), len(reading.values))
            except MiAuditError as error:
                self._found[reading.spec] = error


@dataclass(frozen=True, eq=False)
class _Sample:
    """Some rows of a reading, ascending."""

    scored: Scored
    rows: tuple[int, ...]

    @classmethod
    def of(cls, scored: Scored, seed: int) -> "_Sample":
        n = len(scored.reading.values)
        drawn = range(n) if n <= SAMPLE else stream(seed, "precision", scored.reading.spec.digest).choice(n, SAMPLE, replace=False).tolist()
        return cls(scored, tuple(sorted(drawn)))

    @property
    def request(self) -> Request:
        prompts = self.scored.reading.suite.prompts
        return [prompts[row] for row in self.rows], frozenset({self.scored.site})

    def difference(self, store: ActivationStore) -> float:
        """The largest between the reading's scores and those on what is stored. Raises DetectorError for one that is not finite."""
        exact = self.scored.detector.score(store.read(self.request[0], self.scored.site).vectors)
        largest = float(np.abs(self.scored.reading.values[list(self.rows)] - exact).max())
        if not np.isfinite(largest):
            raise DetectorError(f"{self.scored.detector.spec.name}: a score in float32 is not finite; check the weights of the model and the detector's file")
        return largest
