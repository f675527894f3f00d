"""The logistic probe: standardised inside, its strength chosen by grouped cross-validation."""

from typing import Final

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from mi_audit.detectors.linear import Directions
from mi_audit.errors import DetectorError
from mi_audit.stats.checks import Bools, Floats

STRENGTHS: Final = tuple(10.0**exponent for exponent in range(-5, 3))
"""Candidates for C, the inverse of the L2 penalty on standardised activations, strongest penalty first."""

FOLDS: Final = 5


class Logistic:
    """L2-regularised logistic regression on standardised activations; scores are log-odds.

    C has the least log-loss on held-out groups (StratifiedGroupKFold, at most 5 folds, each standardised by itself; ties go to the stronger penalty) under the
    true labels. Every other labelling is fitted with the same C, so that it has the same capacity.
    """

    def __init__(self, acts: Floats, labels: Bools, groups: tuple[str, ...]) -> None:
        self.regularisation = _choose(acts, labels, np.asarray(groups))
        self._data = _Standardised(acts)

    def fit(self, labels: Bools) -> Directions:
        """See `Fitter.fit`."""
        return self._data.fit(labels, self.regularisation)


class _Standardised:
    """Standardised activations in at most n coordinates: the penalty is the same in every rotation, and the solution lies in the rows' span."""

    def __init__(self, acts: Floats) -> None:
        self.mean = acts.mean(axis=0)
        spread = acts.std(axis=0)
        self._scale = np.where(spread > 0, spread, 1.0)
        standard = (acts - self.mean) / self._scale
        if standard.shape[0] < standard.shape[1]:
            left, lengths, self._axes = np.linalg.svd(standard, full_matrices=False)
            self._coordinates = left * lengths
        else:
            self._axes, self._coordinates = np.eye(standard.shape[1]), standard

    def fit(self, labels: Bools, strength: float) -> Directions:
        weights, intercepts = np.empty((len(labels), self._coordinates.shape[1])), np.empty(len(labels))
        for draw, classes in enumerate(labels):
            regression = LogisticRegression(C=strength, solver="newton-cg", tol=1e-8, max_iter=1000).fit(self._coordinates, classes)
            weights[draw], intercepts[draw] = regression.coef_[0], regression.intercept_[0]
        if not weights.any(axis=1).all():
            raise DetectorError("the activations do not vary, so there is nothing for a logistic probe to learn from")
        return Directions(self.mean, weights @ self._axes / self._scale, intercepts)


def _choose(acts: Floats, labels: Bools, groups: np.ndarray) -> float:
    folds = min(FOLDS, len(set(groups[labels])), len(set(groups[~labels])))
    if folds < 2:
        raise DetectorError(
            "a logistic probe chooses its strength on held-out groups and needs at least 2 groups with positives and 2 with negatives; add groups"
        )
    losses = np.zeros(len(STRENGTHS))
    for train, held_out in StratifiedGroupKFold(folds).split(acts, labels, groups):
        if labels[train].all() or not labels[train].any():
            raise DetectorError("a logistic probe can't hold out groups and keep both classes: nearly all prompts of one class are in one group; add groups")
        data = _Standardised(acts[train])
        for index, strength in enumerate(STRENGTHS):
            (scores,) = data.fit(labels[train][None], strength).scores(acts[held_out])
            losses[index] += np.logaddexp(0, np.where(labels[held_out], -scores, scores)).sum()
    return STRENGTHS[int(np.argmin(losses))]
