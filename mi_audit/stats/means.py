"""Means and differences of means of grouped values: mean, mean difference, paired difference, effect size."""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from mi_audit.errors import StatisticsError
from mi_audit.stats.checks import Bools, Clusters, Floats, checked_alpha, checked_both_classes, checked_clusters, checked_flags, checked_values
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.jackknife import Jackknife, worth_of
from mi_audit.stats.limits import unvalidated

METHOD: Final = "cluster jackknife, t quantile, widened for skewness (Hall)"


def mean(values: ArrayLike, groups: ArrayLike, *, alpha: float = 0.025, quantity: str = "mean") -> Estimate:
    """The mean of `values` [n] in their groups; `quantity` names what they are, for instance each prompt's slope.

    Raises:
        StatisticsError: wrong shapes or types, a value that is not finite, or fewer than two groups.
    """
    alpha = checked_alpha(alpha)
    floats = checked_values("values", values)
    clusters = checked_clusters(groups, len(floats))
    return _estimate(quantity, _mean_jackknife(floats, clusters), alpha, len(floats), None)


def mean_difference(values: ArrayLike, labels: ArrayLike, groups: ArrayLike, *, alpha: float = 0.025) -> Estimate:
    """The mean of `values` [n] over the positives less that over the negatives; a group may hold either class or both.

    Raises:
        StatisticsError: wrong shapes or types, a value that is not finite, one class only, or a class that comes in a single group.
    """
    alpha = checked_alpha(alpha)
    floats, flags, clusters = _checked_classes(values, labels, groups)
    moments = _Moments.by_group(floats, flags, clusters)
    jackknife = Jackknife.of(float(moments.whole().difference()), moments.without_each().difference(), moments.worth(), _scale(floats))
    return _estimate("mean_difference", jackknife, alpha, len(floats), int(flags.sum()))


def paired_difference(values: ArrayLike, labels: ArrayLike, pairs: ArrayLike, groups: ArrayLike, *, alpha: float = 0.025) -> Estimate:
    """The mean over pairs of (mean of the pair's positives less mean of its negatives); pairs are named by `pairs` [n] and lie within groups.

    Raises:
        StatisticsError: wrong shapes or types, a value that is not finite, a pair without one of the classes or in two groups, or fewer than two groups.
    """
    alpha = checked_alpha(alpha)
    floats, flags, clusters = _checked_classes(values, labels, groups)
    paired = checked_clusters(pairs, len(floats), "pairs")
    positives, negatives = paired.sums(flags.astype(np.float64)), paired.sums((~flags).astype(np.float64))
    names = np.asarray(pairs)
    if (lacking := (positives == 0) | (negatives == 0)).any():
        raise StatisticsError(f"Pair {names[np.argmax(lacking[paired.codes])]!r} has prompts of one class only: each pair needs a positive and a negative.")
    group_of = np.zeros(paired.count, dtype=np.intp)
    group_of[paired.codes] = clusters.codes
    if (astray := group_of[paired.codes] != clusters.codes).any():
        raise StatisticsError(f"Pair {names[np.argmax(astray)]!r} lies in two groups: a pair belongs to one group.")
    differences = paired.sums(np.where(flags, floats, 0.0)) / positives - paired.sums(np.where(flags, 0.0, floats)) / negatives
    grouped = Clusters(codes=group_of, sizes=np.bincount(group_of, minlength=clusters.count).astype(np.float64))
    return _estimate("paired_difference", _mean_jackknife(differences, grouped), alpha, len(floats), int(flags.sum()))


def effect_size(values: ArrayLike, labels: ArrayLike, groups: ArrayLike, *, alpha: float = 0.025, more_spread: float = 0.0) -> Estimate:
    """Hedges's g: the mean difference over the pooled standard deviation, corrected for small samples (Hedges 1981, J. Educ. Stat. 6).

    `more_spread`, which may be negative, is added to the standard deviation within the classes, taken with divisor n.

    Raises:
        StatisticsError: as `mean_difference`; also when all values within each class are equal, or would be with less spread.
    """
    alpha = checked_alpha(alpha)
    floats, flags, clusters = _checked_classes(values, labels, groups)
    moments = _Moments.by_group(floats, flags, clusters)
    whole, without = moments.whole(), moments.without_each()
    if min(float(whole.pooled_deviation(more_spread)), float(np.min(without.pooled_deviation(more_spread)))) <= 0.0:
        raise StatisticsError("The effect size is undefined: the values of each class are all equal, or are so without one of the groups.")
    jackknife = Jackknife.of(float(whole.hedges_g(more_spread)), without.hedges_g(more_spread), moments.worth())
    return _estimate("effect_size", jackknife, alpha, len(floats), int(flags.sum()))


@dataclass(frozen=True, eq=False)
class _Moments:
    """Counts, sums and sums of squares of the positives (1) and negatives (0): of all groups, or one entry for each."""

    n_1: Floats
    n_0: Floats
    sum_1: Floats
    sum_0: Floats
    squares_1: Floats
    squares_0: Floats

    @classmethod
    def by_group(cls, values: Floats, labels: Bools, clusters: Clusters) -> Self:
        """Within each group, [groups]. The values are centred before, so that the squares lose no digits."""
        ones, centred = labels.astype(np.float64), values - values.mean()
        rows = (ones, 1.0 - ones, ones * centred, (1.0 - ones) * centred, ones * centred**2, (1.0 - ones) * centred**2)
        return cls(*(clusters.sums(row) for row in rows))

    def whole(self) -> Self:
        return type(self)(*(np.asarray(part.sum()) for part in self._parts()))

    def without_each(self) -> Self:
        """With each group left out.

        Raises:
            StatisticsError: that leaves one class only.
        """
        without = type(self)(*(part.sum() - part for part in self._parts()))
        if min(without.n_1.min(), without.n_0.min()) < 0.5:
            raise StatisticsError("All prompts of one class are in a single group: its part of the error can't be seen. Spread each class over several groups.")
        return without

    def difference(self) -> Floats:
        return np.asarray(self.sum_1 / self.n_1 - self.sum_0 / self.n_0)

    def pooled_deviation(self, more: float) -> Floats:
        within = self.squares_1 - self.sum_1**2 / self.n_1 + self.squares_0 - self.sum_0**2 / self.n_0
        negligible = 1e-12 * (self.squares_1 + self.squares_0)  # what rounding leaves of none
        n, df = self.n_1 + self.n_0, np.maximum(self.n_1 + self.n_0 - 2.0, 1.0)
        return np.asarray((np.sqrt(np.where(within > negligible, within, 0.0)) + more * np.sqrt(n)) / np.sqrt(df))

    def hedges_g(self, more_spread: float) -> Floats:
        df = self.n_1 + self.n_0 - 2.0
        correction = np.exp(gammaln(df / 2.0) - gammaln((df - 1.0) / 2.0)) / np.sqrt(df / 2.0)
        return np.asarray(correction * self.difference() / self.pooled_deviation(more_spread))

    def worth(self) -> float:
        """The number of equal groups that would tell as much, of the class that has fewer."""
        return min(worth_of(self.n_1), worth_of(self.n_0))

    def _parts(self) -> tuple[Floats, ...]:
        return self.n_1, self.n_0, self.sum_1, self.sum_0, self.squares_1, self.squares_0


def _scale(values: Floats) -> float:
    return float(np.abs(values).max())


def _mean_jackknife(values: Floats, clusters: Clusters) -> Jackknife:
    if clusters.count < 2:
        raise StatisticsError(
            "All prompts are in one group: the error of a mean can't be seen on it. Name the groups (templates, entities, pairs), at least two."
        )
    centre = float(values.mean())
    shifts = -clusters.sums(values - centre) / (len(values) - clusters.sizes)
    return Jackknife(value=centre, shifts=shifts, worth=clusters.effective_count, scale=_scale(values))


def _checked_classes(values: ArrayLike, labels: ArrayLike, groups: ArrayLike) -> tuple[Floats, Bools, Clusters]:
    floats = checked_values("values", values)
    flags = checked_flags("labels", labels, len(floats))
    checked_both_classes(flags)
    return floats, flags, checked_clusters(groups, len(floats))


def _estimate(quantity: str, jackknife: Jackknife, alpha: float, n: int, positives: int | None) -> Estimate:
    low, high = jackknife.bounds(alpha)
    return Estimate(
        quantity=quantity,
        value=jackknife.value,
        low=low,
        high=high,
        alpha=alpha,
        n=n,
        n_positive=positives,
        groups=len(jackknife.shifts),
        method=METHOD,
        undecided=unvalidated(quantity, n, len(jackknife.shifts), alpha) or jackknife.unreliable(quantity),
    )
