"""A detector with all that its controls and baselines are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mi_audit.detectors.activations import Activations
from mi_audit.detectors.baselines import BAG_OF_WORDS, EMBEDDING, LENGTH, BagOfWords, sign_of_length
from mi_audit.detectors.controls import SHUFFLED
from mi_audit.detectors.files import read_vectors
from mi_audit.detectors.fitted import FittedDetector
from mi_audit.detectors.fitting import fitter
from mi_audit.detectors.latents import FittedLatents
from mi_audit.detectors.linear import Directions, Fitter
from mi_audit.detectors.nulls import Draw, NullDraws, as_directions
from mi_audit.detectors.readings import BASELINE, NULL, Arm
from mi_audit.detectors.sweeping import Curve
from mi_audit.detectors.threshold import calibrate
from mi_audit.errors import DetectorError
from mi_audit.plan.detectors import DirectionSpec, FalsePositiveRate, Threshold
from mi_audit.plan.digest import Json
from mi_audit.plan.places import At
from mi_audit.plan.sweep import FittedSpec
from mi_audit.stats.checks import Bools, Floats
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.suite import Suite

Fitted = FittedDetector | FittedLatents
"""What scores."""


@dataclass(frozen=True, eq=False)
class LearnedProbe:
    """A probe fitted to its suite: read there as `fit`, on the embedding as `embedded` where that can be read, and on its calibration's negatives [m, d]."""

    spec: FittedSpec
    detector: FittedDetector
    fitter: Fitter
    fit: Activations
    embedded: Activations | None
    negatives: Floats
    draw: Draw
    curve: Curve | None = None

    @classmethod
    def learn(
        cls, spec: FittedSpec, root: str, at: At, fit: Activations, embedded: Activations | None, negatives: Floats, draw: Draw, curve: Curve | None = None
    ) -> "LearnedProbe":
        """Fit and calibrate at one place; `curve` says how it was chosen, where a sweep chose it.

        Raises:
            DetectorError: the method can't be fitted to these activations, or there are too few negatives.
        """
        labels, groups = labels_of(spec), spec.fit.groups()
        try:
            method = fitter(spec.method, fit.vectors, labels, groups)
            directions = method.fit(labels[None])
            weight, centre = directions.weights[0], directions.centre()
            threshold = _threshold(spec.threshold, as_directions(weight, centre), negatives)
        except DetectorError as error:
            raise DetectorError(f"{spec.name} on {spec.fit.name}, {at}: {error}") from error
        card: dict[str, Json] = {
            "method": spec.method,
            "n": len(labels),
            "positives": int(labels.sum()),
            "groups": len(set(groups)),
            "regularisation": method.regularisation,
            **_rule(spec.threshold, negatives),
            **({"curve": curve.describe()} if curve else {}),
        }
        return cls(spec, FittedDetector(spec, root, at, weight, centre, threshold, card), method, fit, embedded, negatives, draw, curve)

    @cached_property
    def nulls(self) -> tuple[NullDraws, ...]:
        """Refitted on shuffled labels, and random directions with the covariance of the fitted activations; the same for every suite that is read."""
        shuffled = self.draw.shuffled_labels(self.spec, self.fitter, labels_of(self.spec), self.spec.fit.groups(), self.negatives)
        like = as_directions(self.detector.weight, self.detector.centre)
        return shuffled, self.draw.random_directions(self.spec, like, self.fit.vectors, labels_of(self.spec), self.negatives)

    def null_arms(self, read: Activations, suite: Suite, reading_digest: str) -> tuple[Arm, ...]:
        """The nulls' scores on what is read; where it holds one class its labels can't be shuffled, and random directions alone are left."""
        shuffled, random = self.nulls
        if suite.one_class():
            return (random.score(read.vectors),)
        labels = self.draw.labels_read(self.spec, np.asarray(suite.labels(), dtype=np.bool_), suite.groups(), reading_digest)
        return shuffled.score(read.vectors, labels), random.score(read.vectors)

    def baseline_arms(self, prompts: Sequence[Prompt], read: Activations, embedded: Activations | None) -> tuple[Arm, ...]:
        """The baselines' scores on what is read; one that can't be computed is absent."""
        scores = {LENGTH: self._sign_of_length * read.n_tokens}
        if self._words is not None:
            scores[BAG_OF_WORDS] = self._words.scores(prompts)
        if self._embedding is not None and embedded is not None:
            scores[EMBEDDING] = self._embedding.scores(embedded.vectors)[0]
        return tuple(Arm(BASELINE + name, values[None].astype(np.float64)) for name, values in scores.items())

    @cached_property
    def _sign_of_length(self) -> float:
        return sign_of_length(self.fit.n_tokens, labels_of(self.spec))

    @cached_property
    def _words(self) -> BagOfWords | None:
        return BagOfWords.fit(self.spec.fit.prompts, labels_of(self.spec))

    @cached_property
    def _embedding(self) -> Directions | None:
        """The probe's own method on the mean embedding of all tokens; None where that tells nothing apart."""
        if self.embedded is None:
            return None
        labels = labels_of(self.spec)
        try:
            return fitter(self.spec.method, self.embedded.vectors, labels, self.spec.fit.groups()).fit(labels[None])
        except DetectorError:
            return None


@dataclass(frozen=True, eq=False)
class LearnedDirection:
    """A direction from a file, calibrated on negatives [m, d]. It has no fit suite: nothing is refitted for its nulls, and its baseline is length alone."""

    spec: DirectionSpec
    detector: FittedDetector
    negatives: Floats
    draw: Draw
    curve = None

    @classmethod
    def learn(cls, spec: DirectionSpec, root: str, at: At, width: int, negatives: Floats, draw: Draw) -> "LearnedDirection":
        """Read the file and calibrate.

        Raises:
            DetectorError: the file is not usable (`read_vectors`), was learned on another model, or there are too few negatives.
        """
        found = read_vectors(spec.file, spec.name, width=width, digest=spec.file_digest)
        if found.card is not None and found.card.get("model_root") != root:
            raise DetectorError(f"{spec.name}: {spec.file.name} was learned on another model, as its card says; fit it on this one")
        centre = found.centre if found.centre is not None else np.zeros(width)
        try:
            threshold = _threshold(spec.threshold, as_directions(found.direction, centre), negatives)
        except DetectorError as error:
            raise DetectorError(f"{spec.name}: {error}") from error
        card: dict[str, Json] = {"file_digest": spec.file_digest, **_rule(spec.threshold, negatives)}
        return cls(spec, FittedDetector(spec, root, at, found.direction, centre, threshold, card), negatives, draw)

    @property
    def as_directions(self) -> Directions:
        """Itself, in the form of its draws."""
        return as_directions(self.detector.weight, self.detector.centre)

    def null_arms(self, read: Activations, suite: Suite, reading_digest: str) -> tuple[Arm, ...]:
        """Its own scores held against shuffled labels, and random directions with the covariance of what is read, within its classes."""
        like, labels = self.as_directions, np.asarray(suite.labels(), dtype=np.bool_)
        drawn = self.draw.random_directions(self.spec, like, read.vectors, labels, self.negatives, (reading_digest,)).score(read.vectors)
        if suite.one_class():
            return (drawn,)
        shuffled = self.draw.labels_read(self.spec, labels, suite.groups(), reading_digest)
        values = np.repeat(self.detector.score(read.vectors)[None], len(shuffled), axis=0)
        thresholds = None if self.detector.threshold is None else np.repeat(self.detector.threshold, len(shuffled))
        return Arm(NULL + SHUFFLED, values, thresholds, shuffled), drawn

    def baseline_arms(self, prompts: Sequence[Prompt], read: Activations, embedded: Activations | None) -> tuple[Arm, ...]:
        """The number of tokens, as it is."""
        return (Arm(BASELINE + LENGTH, read.n_tokens[None].astype(np.float64)),)


def labels_of(spec: FittedSpec) -> Bools:
    """Whether each prompt of the fit suite is of the positive class."""
    return np.asarray(spec.fit.labels(), dtype=np.bool_)


def _threshold(rule: Threshold, detector: Directions, negatives: Floats) -> float | None:
    return None if rule is None else float(calibrate(rule, detector.scores(negatives))[0])


def _rule(rule: Threshold, negatives: Floats) -> dict[str, Json]:
    if rule is None:
        return {}
    return {"threshold_rule": str(rule)} | ({"negatives": len(negatives)} if isinstance(rule, FalsePositiveRate) else {})
