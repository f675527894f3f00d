"""Detectors that have nothing to find, made ready to score beside the one that they control."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mi_audit.detectors.controls import RANDOM, SHUFFLED, random_directions, shuffle, stream
from mi_audit.detectors.linear import Directions, Fitter
from mi_audit.detectors.readings import NULL, Arm
from mi_audit.detectors.threshold import calibrate
from mi_audit.plan.detectors import DetectorSpec
from mi_audit.stats.checks import Bools, Floats


@dataclass(frozen=True, eq=False)
class NullDraws:
    """The draws of one null, each with its own threshold [draws], calibrated by the detector's rule on the detector's negatives."""

    name: str
    directions: Directions
    thresholds: Floats | None

    def score(self, acts: Floats, labels: Bools | None = None) -> Arm:
        """The null's arm in a reading of activations [n, d], held against the reading's own labels or each draw's [draws, n]."""
        return Arm(NULL + self.name, self.directions.scores(acts), self.thresholds, labels)


@dataclass(frozen=True, eq=False)
class Draw:
    """How many draws a null takes, and the seed of the run."""

    draws: int
    seed: int

    def shuffled_labels(self, spec: DetectorSpec, fitter: Fitter, labels: Bools, groups: tuple[str, ...], negatives: Floats) -> NullDraws:
        """The probe refitted by its own method to labels shuffled within their structure; the primary null."""
        labellings = shuffle(labels, groups, self.draws, stream(self.seed, SHUFFLED, spec.digest))
        return _calibrated(SHUFFLED, fitter.fit(labellings), spec, negatives)

    def labels_read(self, spec: DetectorSpec, labels: Bools, groups: tuple[str, ...], reading_digest: str) -> Bools:
        """Labels [draws, n] of what is read, shuffled within their structure: the null is that labels have nothing to do with activations, there too."""
        return shuffle(labels, groups, self.draws, stream(self.seed, SHUFFLED, spec.digest, reading_digest))

    def random_directions(self, spec: DetectorSpec, like: Directions, acts: Floats, labels: Bools, negatives: Floats, key: Iterable[str] = ()) -> NullDraws:
        """Directions as long as the detector's, with the covariance of `acts` [n, d] within the classes; `key` tells apart the draws of one detector."""
        random = stream(self.seed, RANDOM, spec.digest, *key)
        return _calibrated(RANDOM, random_directions(acts, labels, like, self.draws, random), spec, negatives)


def _calibrated(name: str, directions: Directions, spec: DetectorSpec, negatives: Floats) -> NullDraws:
    return NullDraws(name, directions, calibrate(spec.threshold, directions.scores(negatives)) if spec.threshold else None)


def as_directions(weight: Floats, centre: Floats) -> Directions:
    """A single detector, (x − centre)·weight, in the form of its draws."""
    return Directions(centre, weight[None], np.zeros(1))
