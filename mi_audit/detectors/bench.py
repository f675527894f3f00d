"""From what a plan asks of a model to readings and estimates."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from mi_audit.detectors.activations import Activations, ActivationStore, Captured, Request
from mi_audit.detectors.attributions import TokenAttributions, attributed
from mi_audit.detectors.controls import draws_for
from mi_audit.detectors.latents import LearnedLatents, groups_of, silent_null
from mi_audit.detectors.learned import Fitted, LearnedDirection, LearnedProbe
from mi_audit.detectors.nulls import Draw
from mi_audit.detectors.precision import Precision, Scored
from mi_audit.detectors.progress import as_one
from mi_audit.detectors.quantities import estimate_of
from mi_audit.detectors.readings import DETECTOR, Arm, ReadingData
from mi_audit.detectors.sae_checks import SaeChecks, SaeQuality, require_match
from mi_audit.detectors.sweeping import Curve, choose
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.passing import width_at
from mi_audit.engine.progress import Progress
from mi_audit.engine.site import Site
from mi_audit.errors import DetectorError, MiAuditError
from mi_audit.model.audited import AuditedModel
from mi_audit.plan.detectors import DetectorSpec, DirectionSpec, FalsePositiveRate, ProbeSpec, negatives_of
from mi_audit.plan.latents import LatentSpec
from mi_audit.plan.measurements import AttributionSpec, EstimateSpec, Measurement, ReadSpec
from mi_audit.plan.places import At, Tokens
from mi_audit.plan.sweep import SweepSpec
from mi_audit.saes.latents import LatentGroups
from mi_audit.stats.checks import Floats
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.spread import Spread
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.suite import Suite

ATTRIBUTED = 3
"""Prompts of a reading that are attributed: each takes dozens of passes there and back."""

_EMBEDDING = Site(At("embed"), Tokens("all"))

Learned = LearnedProbe | LearnedDirection | LearnedLatents


class Bench:
    """Measures one model. What was captured, learned, read or estimated once is kept.

    Args:
        model: the model under audit.
        alpha: the one-sided level of every bound; also sets how many draws a null takes.
        seed: of the run; with the same seed and inputs every number is the same.
        limit: at most so many prompts of each suite that is read; suites that fit and calibrate stay whole.
        progress: hears of the forward passes.
        cache: where reduced activations are looked up and kept; None passes every prompt through the model.

    Every method may raise what the rooms below raise: HookPointError, PromptError, DetectorError, StatisticsError.
    """

    def __init__(
        self,
        model: AuditedModel,
        *,
        alpha: float,
        seed: int,
        limit: int | None = None,
        progress: Progress | None = None,
        cache: ActivationCache | None = None,
    ) -> None:
        self._model, self._alpha, self._limit, self._progress = model, alpha, limit, progress
        self._draw = Draw(draws_for(alpha), seed)
        self._store = ActivationStore(model, cache)
        self._learned: dict[DetectorSpec, Learned] = {}
        self._readings: dict[ReadSpec, ReadingData] = {}
        self._estimates: dict[EstimateSpec, Estimate] = {}
        self._attributed: dict[AttributionSpec, tuple[TokenAttributions, ...]] = {}
        self._checks = SaeChecks(model, alpha, seed, cache, progress)
        self._groups: dict[LatentSpec, LatentGroups] = {}
        self._precision = Precision(model, seed, cache, progress)
        self._planned: tuple[ReadSpec, ...] = ()
        self._embedding_fails = any(name == "embed" for name, _, _ in model.hook_points.refused)

    @property
    def cache(self) -> ActivationCache | None:
        """Where reduced activations are kept."""
        return self._store.cache

    @property
    def captured(self) -> Captured:
        """What passed through the model so far."""
        return self._store.captured

    def prepare(self, readings: Iterable[ReadSpec], others: Iterable[DetectorSpec] = ()) -> None:
        """Capture all that `readings` need, each distinct prompt once, learn their detectors and `others`, and measure the readings' spreads where the model is
        in low precision.

        Detectors come first, so that one that can't be fitted fails early, and because only then is known where a swept one reads.
        """
        self._planned = readings = tuple(dict.fromkeys(readings))
        detectors = tuple(dict.fromkeys([*(reading.detector for reading in readings), *others]))
        first = [request for detector in detectors for request in self._learning(detector)]
        perhaps = [self._reading(reading, self._sites(reading.detector)) for reading in readings]
        with as_one(self._progress, self._store.missing([*first, *perhaps])) as progress:
            self._store.fetch(first, perhaps, progress=progress)
            for detector in detectors:
                self.learned(detector)
            self._store.fetch([self._reading(reading, {self._site(reading.detector)}) for reading in readings], progress=progress)
        for reading in readings:
            self.spread(reading)
            self.sae_quality(reading)

    def detector(self, spec: DetectorSpec) -> Fitted:
        """The detector, fitted and calibrated."""
        return self.learned(spec).detector

    def curve(self, spec: DetectorSpec) -> Curve | None:
        """How the detector's layer was chosen; None for one whose place is declared."""
        return self.learned(spec).curve

    def read(self, spec: ReadSpec) -> ReadingData:
        """The detector's scores on the suite, with those of its controls where labels make them meaningful."""
        if spec not in self._readings:
            self._readings[spec] = self._read(spec)
        return self._readings[spec]

    def estimate(self, spec: EstimateSpec) -> Estimate:
        """A quantity of a reading, with its interval and controls."""
        if spec not in self._estimates:
            reading = self.read(spec.reading)
            estimate = estimate_of(spec, reading, self._alpha, self.spread(spec.reading))
            quality = self.sae_quality(spec.reading)
            self._estimates[spec] = estimate if quality is None else replace(estimate, undecided=(*estimate.undecided, *quality.below, *silent_null(reading)))
        return self._estimates[spec]

    def sae_quality(self, spec: Measurement) -> SaeQuality | None:
        """How well the SAE stands for the activations that a reading, or an experiment, rests on; None for a detector without one."""
        detector = spec.detector
        return self._checks.quality(detector.sae, self._limited(spec.suite)) if isinstance(detector, LatentSpec) else None

    def spread(self, spec: ReadSpec) -> Spread | None:
        """How far the reading's scores are from those in float32; None for a model in float32. The first asked for brings those of all planned readings."""
        if not self._model.is_low_precision:
            return None
        if spec not in self._precision:
            scored = [self._scored(spec)]
            for other in (each for each in self._planned if each != spec and each not in self._precision):
                with suppress(MiAuditError):  # raised again where something is claimed of it
                    scored.append(self._scored(other))
            self._precision.measure(scored)
        return self._precision[spec]

    def vectors(self, suite: Suite, site: Site) -> Floats:
        """The activations [n, width] of a suite's prompts at a site."""
        self._fetch([(suite.prompts, frozenset({site}))])
        return self._store.read(suite.prompts, site).vectors

    def _scored(self, spec: ReadSpec) -> Scored:
        return Scored(self.read(spec), self.detector(spec.detector))

    def attribute(self, spec: AttributionSpec) -> tuple[TokenAttributions, ...]:
        """The prompts of a reading that score highest, attributed to their tokens; the highest first."""
        if spec not in self._attributed:
            detector = self.learned(spec.reading.detector).detector
            self._attributed[spec] = attributed(self._model, detector, self.read(spec.reading), spec, ATTRIBUTED, self.cache, self._progress)
        return self._attributed[spec]

    def learned(self, spec: DetectorSpec) -> Learned:
        """The detector with all that its controls are made of."""
        if spec not in self._learned:
            self._fetch(self._learning(spec))
            self._learned[spec] = self._learned_from(spec)
        return self._learned[spec]

    def _learned_from(self, spec: DetectorSpec) -> Learned:
        """The detector, all it learns from being captured."""
        places, root = self._places(spec), self._model.identity.root
        match spec:
            case LatentSpec():
                site = self._latent_site(spec)
                return LearnedLatents.learn(spec, root, site.at, self._groups[spec], self._negatives(spec, site), self._draw)
            case DirectionSpec():
                site = Site(places[0], spec.tokens)
                return LearnedDirection.learn(spec, root, site.at, self._width(site), self._negatives(spec, site), self._draw)
            case ProbeSpec():
                curve, site = None, Site(places[0], spec.tokens)
            case SweepSpec():
                curve = choose(spec, places, lambda prompts, at: self._store.read(prompts, Site(at, spec.tokens)).vectors, self._alpha, self._draw.seed)
                site = Site(curve.picked, spec.tokens)
            case _:
                raise DetectorError(f"{spec.name}: nothing is known of how to learn a {type(spec).__name__}")
        fit, embedded = self._store.read(spec.fit.prompts, site), self._embedded(spec, spec.fit.prompts)
        return LearnedProbe.learn(spec, root, site.at, fit, embedded, self._negatives(spec, site), self._draw, curve)

    def _read(self, spec: ReadSpec) -> ReadingData:
        learned = self.learned(spec.detector)
        suite = self._limited(spec.suite)
        site = self._site(spec.detector)
        self._fetch([self._reading(spec, {site})])
        read = self._store.read(suite.prompts, site)
        values = learned.detector.score(read.vectors)
        if not np.isfinite(values).all():
            prompt = suite.prompts[int(np.argmin(np.isfinite(values)))]
            raise DetectorError(f"{spec.detector.name}: its score of prompt {prompt.id!r} is not finite; load the model with dtype='float32'")
        threshold = learned.detector.threshold
        arms = [Arm(DETECTOR, values[None], None if threshold is None else np.array([threshold]))]
        if spec.controls and suite.has_labels and any(suite.labels()):
            arms += learned.null_arms(read, suite, spec.digest)
            if not suite.one_class():
                arms += learned.baseline_arms(suite.prompts, read, self._embedded(spec.detector, suite.prompts))
        return ReadingData(spec, suite, tuple(arms), read.token_index, int(read.excluded.sum()))

    def _learning(self, spec: DetectorSpec) -> list[Request]:
        """What must be captured before the detector can score."""
        sites = frozenset(self._sites(spec))
        requests: list[Request] = [(prompts, sites) for prompts in spec.learning]
        return requests if spec.fit is None else [*requests, (spec.fit.prompts, frozenset(self._baseline_sites(spec)))]

    def _reading(self, spec: ReadSpec, sites: set[Site]) -> Request:
        suite = self._limited(spec.suite)
        compares = spec.controls and suite.has_labels and not suite.one_class()
        return suite.prompts, frozenset(sites | (self._baseline_sites(spec.detector) if compares else set()))

    def _fetch(self, requests: Sequence[Request]) -> None:
        with as_one(self._progress, self._store.missing(requests)) as progress:
            self._store.fetch(requests, progress=progress)

    def _places(self, spec: DetectorSpec) -> tuple[At, ...]:
        return spec.places(self._model.n_layers, [tap.layer for tap in self._model.hook_points.taps if tap.name == spec.point])

    def _sites(self, spec: DetectorSpec) -> set[Site]:
        """Where the detector reads, or may read once its layer is chosen."""
        if isinstance(spec, LatentSpec):
            return {self._latent_site(spec)}
        return {Site(at, spec.tokens) for at in self._places(spec)}

    def _site(self, spec: DetectorSpec) -> Site:
        """Where the detector reads; it is learned first."""
        return self.learned(spec).detector.site

    def _latent_site(self, spec: LatentSpec) -> Site:
        """Where the latents are read, with those that are drawn for their null; the SAE is held against the model first."""
        if spec not in self._groups:
            require_match(spec.sae, self._model)
            self._groups[spec] = groups_of(spec, self._checks.firing(spec.sae), self._draw)
        return Site(self._places(spec)[0], spec.tokens, self._groups[spec])

    def _width(self, site: Site) -> int:
        return width_at(self._model, site)

    def _baseline_sites(self, spec: DetectorSpec) -> set[Site]:
        """Where a probe's baselines look: at the embedding, unless this model does not show it or the probe itself reads it there."""
        absent = self._embedding_fails or spec.fit is None or self._sites(spec) == {_EMBEDDING}
        return set() if absent else {_EMBEDDING}

    def _embedded(self, spec: DetectorSpec, prompts: Sequence[Prompt]) -> Activations | None:
        return self._store.read(prompts, _EMBEDDING) if self._baseline_sites(spec) else None

    def _negatives(self, spec: DetectorSpec, site: Site) -> Floats:
        """The activations [m, d] on which the threshold is calibrated; none for a threshold that needs no calibration."""
        if isinstance(spec.threshold, FalsePositiveRate):
            return self._store.read(negatives_of(spec.threshold.on), site).vectors
        return np.empty((0, self._width(site)))

    def _limited(self, suite: Suite) -> Suite:
        return suite if self._limit is None else suite.head(self._limit)
