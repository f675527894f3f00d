"""Linear detectors by closed form: difference of means and mass mean, fitted to one labelling of the activations or to many at once."""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from mi_audit.errors import DetectorError
from mi_audit.stats.checks import Bools, Floats


@dataclass(frozen=True, eq=False)
class Directions:
    """Linear scores on one activation space, one or many: score_b(x) = (x − mean)·weights_b + intercepts_b.

    `mean` [d] is that of the training activations, `weights` [B, d], `intercepts` [B].
    """

    mean: Floats
    weights: Floats
    intercepts: Floats

    def scores(self, acts: Floats) -> Floats:
        """The scores [B, n] of activations [n, d]."""
        scores: Floats = self.weights @ (acts - self.mean).T + self.intercepts[:, None]
        return scores

    def centre(self) -> Floats:
        """Of a single direction, the point [d] on the line through `mean` along it at which its score is 0."""
        (weight,) = self.weights
        centre: Floats = self.mean - self.intercepts[0] / (weight @ weight) * weight
        return centre


_LEAST_WITHIN: Final = 1e-10  # of the total variance; below it the variance within the classes is lost in rounding


class Fitter(Protocol):
    """A method with all that it learns without regard to which labelling it is fitted to. `regularisation` is what the method chose for itself, if anything."""

    @property
    def regularisation(self) -> float | None:
        """The strength that every fit uses, on the method's own scale."""
        ...

    def fit(self, labels: Bools) -> Directions:
        """One direction for each labelling in `labels` [B, n].

        Raises:
            DetectorError: a labelling to which no direction can be fitted.
        """
        ...


class DifferenceOfMeans:
    """θ = μ⁺ − μ⁻ at unit length, centred on the train mean (Marks & Tegmark 2023, arXiv 2310.06824). Scores are in units of the activations."""

    regularisation = None

    def __init__(self, acts: Floats) -> None:
        self._mean = acts.mean(axis=0)
        self._centred = acts - self._mean

    def fit(self, labels: Bools) -> Directions:
        """See `Fitter.fit`."""
        difference = contrasts(labels) @ self._centred
        lengths = np.linalg.norm(difference, axis=1)
        if not (lengths > 0).all():
            raise DetectorError("the two classes have the same mean activation, so their difference has no direction")
        return Directions(self._mean, difference / lengths[:, None], np.zeros(len(labels)))


class MassMean:
    """θ = Σ⁻¹(μ⁺ − μ⁻), centred on the train mean (Marks & Tegmark 2023, arXiv 2310.06824). Scores are log-odds, up to a constant, of two normal classes.

    Σ is the pooled within-class covariance (divided by n), shrunk towards a multiple of the identity by Ledoit & Wolf (2004). Every labelling has its own Σ and
    shrinkage, but as the within-class scatter is the total one less a term of rank 1, a single decomposition serves them all (Sherman & Morrison 1950).
    """

    regularisation = None

    def __init__(self, acts: Floats) -> None:
        self._mean = acts.mean(axis=0)
        left, lengths, axes = np.linalg.svd(acts - self._mean, full_matrices=False)
        kept = lengths > lengths[0] * max(acts.shape) * np.finfo(np.float64).eps
        self._axes = axes[kept]
        self._coordinates = left[:, kept] * lengths[kept]
        self._scatter = lengths[kept] ** 2

    def fit(self, labels: Bools) -> Directions:
        """See `Fitter.fit`."""
        n, width = labels.shape[1], len(self._mean)
        positives = labels.sum(axis=1)
        rank_1 = positives * (n - positives) / n
        difference = contrasts(labels) @ self._coordinates
        shrinkage, scale = self._shrinkage(labels, difference, rank_1, width)
        diagonal = (1 - shrinkage)[:, None] * self._scatter / n + (shrinkage * scale)[:, None]
        solved = difference / diagonal
        solved /= (1 - (1 - shrinkage) * rank_1 / n * (difference * solved).sum(axis=1))[:, None]
        if not (np.isfinite(solved).all() and solved.any(axis=1).all()):
            raise DetectorError("the two classes have the same mean activation, so their difference has no direction")
        return Directions(self._mean, solved @ self._axes, np.zeros(len(labels)))

    def _shrinkage(self, labels: Bools, difference: Floats, rank_1: Floats, width: int) -> tuple[Floats, Floats]:
        """For each labelling, the weight of the identity and its scale (mean variance), [B] each; the formulas of `sklearn.covariance.ledoit_wolf`."""
        n = labels.shape[1]
        lengths = (difference**2).sum(axis=1)
        trace = (self._scatter.sum() - rank_1 * lengths) / n
        square = ((self._scatter**2).sum() - 2 * rank_1 * (difference**2 @ self._scatter) + (rank_1 * lengths) ** 2) / n**2
        share = labels.mean(axis=1)[:, None]
        mean_of_class = np.where(labels, 1 - share, -share)  # × difference: the mean of the row's own class
        residual = (self._coordinates**2).sum(axis=1) - 2 * mean_of_class * (difference @ self._coordinates.T) + mean_of_class**2 * lengths[:, None]
        if not (trace > _LEAST_WITHIN * self._scatter.sum() / n).all():
            raise DetectorError("the activations do not vary within the classes, so their covariance has no inverse; use method='difference_of_means'")
        scale = trace / width
        distance = square - width * scale**2
        noise = np.minimum(((residual**2).sum(axis=1) / n - square) / n, distance)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(noise > 0, noise / distance, 0.0), scale


def contrasts(labels: Bools) -> Floats:
    """For each labelling in `labels` [B, n] the row of weights that takes the mean of its positives less the mean of its negatives."""
    positives = labels.sum(axis=1, keepdims=True)
    weights: Floats = np.where(labels, 1 / positives, -1 / (labels.shape[1] - positives))
    return weights
