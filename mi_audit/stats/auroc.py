"""The area under the ROC curve of grouped prompts, and the paired difference of two."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit, stdtrit

from mi_audit.errors import StatisticsError
from mi_audit.stats.checks import Bools, Clusters, Floats, checked_alpha, checked_both_classes, checked_clusters, checked_flags, checked_values
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.jackknife import Jackknife, two_class_df, worth_of
from mi_audit.stats.limits import ASSUMED_ICC, TELLING_GROUPS, unvalidated

METHOD: Final = "cluster jackknife on the logit scale, t quantile, no narrower than a score interval"


def auroc_value(scores: ArrayLike, labels: ArrayLike) -> float:
    """P(a positive scores above a negative), a tie counting half.

    Raises:
        StatisticsError: a score that is not finite, or one class only.
    """
    floats = checked_values("scores", scores)
    flags = checked_flags("labels", labels, len(floats))
    positives, negatives = checked_both_classes(flags)
    ranks = midranks(floats)
    return float((ranks[flags].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auroc(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike, *, alpha: float = 0.025) -> Estimate:
    """The AUROC of `scores` [n] for `labels` [n] in their groups, with its interval.

    The value is the usual one, over all pairs. The interval is about pairs from different groups, which are what a new template would bring: pairs within a
    group share its level and flatter a small sample. It is the wider, on each side, of a delete-a-group jackknife on the logit scale with a t quantile, and of
    a score interval (Newcombe 2006, Stat. Med. 25, method 5; variance of Hanley & McNeil 1982) with a design effect: it stays honest near 0 and 1, and with
    perfect separation.

    Raises:
        StatisticsError: wrong shapes or types, a score that is not finite, or one class only.
    """
    alpha = checked_alpha(alpha)
    floats = checked_values("scores", scores)
    flags = checked_flags("labels", labels, len(floats))
    positives, _ = checked_both_classes(flags)
    clusters = checked_clusters(groups, len(floats))
    pairs = count_pairs(floats, flags, clusters)
    undecided = unvalidated("auroc", len(floats), clusters.count, alpha)
    if pairs.spread:
        low, high = _bounds(pairs, Jackknife.of(pairs.value_between, pairs.without_each(), pairs.worth), alpha)
    else:
        low, high = 0.0, 1.0
        undecided = (*undecided, "there are only two groups, or one class is all in one group: the error can't be seen")
    if floats.min() == floats.max():
        undecided = (*undecided, "all scores are equal: the detector says nothing about these prompts")
    return Estimate(
        quantity="auroc",
        value=pairs.value,
        low=min(low, pairs.value),
        high=max(high, pairs.value),
        alpha=alpha,
        n=len(floats),
        n_positive=positives,
        groups=clusters.count,
        method=METHOD,
        undecided=undecided,
    )


def auroc_difference(scores_a: ArrayLike, scores_b: ArrayLike, labels: ArrayLike, groups: ArrayLike, *, alpha: float = 0.025) -> Estimate:
    """The AUROC of `scores_a` [n] less that of `scores_b` [n] on the same prompts, as a "paired_difference"; what the two share cancels out of its error.

    Raises:
        StatisticsError: as `auroc`; also when there are only two groups or one class is all in one group.
    """
    alpha = checked_alpha(alpha)
    floats_a, floats_b = checked_values("scores_a", scores_a), checked_values("scores_b", scores_b)
    flags = checked_flags("labels", labels, len(floats_a))
    positives, _ = checked_both_classes(flags)
    if len(floats_b) != len(floats_a):
        raise StatisticsError(f"scores_b has {len(floats_b)} rows where {len(floats_a)} were expected.")
    clusters = checked_clusters(groups, len(flags))
    pairs_a, pairs_b = count_pairs(floats_a, flags, clusters), count_pairs(floats_b, flags, clusters)
    if not pairs_a.spread:
        raise StatisticsError("A difference of AUROCs needs at least three groups, and each class in at least two of them.")
    between = pairs_a.value_between - pairs_b.value_between
    jackknife = Jackknife.of(between, pairs_a.without_each() - pairs_b.without_each(), pairs_a.worth)
    low, high = jackknife.bounds(alpha)
    value = pairs_a.value - pairs_b.value
    return Estimate(
        quantity="paired_difference",
        value=value,
        low=min(low, value),
        high=max(high, value),
        alpha=alpha,
        n=len(flags),
        n_positive=positives,
        groups=clusters.count,
        method="difference of two AUROCs, cluster jackknife, t quantile, widened for skewness (Hall)",
        undecided=unvalidated("paired_difference", len(flags), clusters.count, alpha) or jackknife.unreliable("paired_difference"),
    )


def _bounds(pairs: "Pairs", jackknife: Jackknife, alpha: float) -> tuple[float, float]:
    value, variance = jackknife.value, jackknife.variance
    quantile = float(stdtrit(pairs.df, 1.0 - alpha))
    larger, smaller = sorted((float(pairs.positives_in.sum()), float(pairs.negatives_in.sum())), reverse=True)
    expected = _hanley_mcneil(value, larger, smaller)
    observed = variance / expected if expected > 0.0 else 1.0
    inflation = quantile * max(observed, pairs.assumed_design_effect, 1.0) ** 0.5
    low = _score_bound(value, inflation, larger, smaller)
    high = 1.0 - _score_bound(1.0 - value, inflation, larger, smaller)
    if 0.0 < value < 1.0:
        reach = quantile * variance**0.5 / (value * (1.0 - value))
        low, high = min(low, float(expit(logit(value) - reach))), max(high, float(expit(logit(value) + reach)))
    return low, high


def _score_bound(value: float, inflation: float, larger: float, smaller: float) -> float:
    """The lowest AUROC that `value` does not exceed by `inflation` standard errors, the error being the one under that AUROC; by bisection to 1e-7."""
    least, most, square = 0.0, value, inflation * inflation
    while most - least > 1e-7:
        middle = 0.5 * (least + most)
        if (value - middle) ** 2 > square * _hanley_mcneil(middle, larger, smaller):
            least = middle
        else:
            most = middle
    return least


def _hanley_mcneil(value: float, larger: float, smaller: float) -> float:
    """The variance of an AUROC over independent rows (Hanley & McNeil 1982), the `larger` class having the tail that adds more."""
    square = value * value
    one, other = value / (2.0 - value) - square, 2.0 * square / (1.0 + value) - square
    most, least = (one, other) if one > other else (other, one)
    return (value * (1.0 - value) + (larger - 1.0) * most + (smaller - 1.0) * least) / (larger * smaller)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a positive and a negative, counted (`pairs`) and won by the positive (`wins`, a tie counting half).

    All of them, those within each group [groups], and the wins by the group of the positive and by that of the negative [groups].
    """

    wins: float
    pairs: float
    wins_within: Floats
    pairs_within: Floats
    wins_by_positive: Floats
    wins_by_negative: Floats
    positives_in: Floats
    negatives_in: Floats

    @property
    def value(self) -> float:
        """The AUROC over all pairs."""
        return self.wins / self.pairs

    @property
    def value_between(self) -> float:
        """Over pairs from different groups only."""
        return float((self.wins - self.wins_within.sum()) / (self.pairs - self.pairs_within.sum()))

    @property
    def spread(self) -> bool:
        """Whether a pair from different groups remains whichever group is left out."""
        return self.groups > 2 and all(float(rows.max()) < float(rows.sum()) for rows in (self.positives_in, self.negatives_in))

    @property
    def df(self) -> float:
        """Degrees of freedom of the jackknife variance."""
        value = self.value
        positives, negatives = self.positives_in.sum(), self.negatives_in.sum()
        by_positive = (self.wins_by_positive - value * self.positives_in * negatives) / self.pairs
        by_negative = (self.wins_by_negative - value * self.negatives_in * positives) / self.pairs
        return two_class_df(by_positive, by_negative, self.positives_in, self.negatives_in)

    @property
    def worth(self) -> float:
        """The number of equal groups that would tell as much, of the class that has fewer."""
        return min(worth_of(self.positives_in), worth_of(self.negatives_in))

    @property
    def assumed_design_effect(self) -> float:
        """The design effect of the assumed within-group correlation. Half of what a group adds to both its classes is taken to cancel out."""
        positives, negatives = float(self.positives_in.sum()), float(self.negatives_in.sum())
        share_1, share_0 = self.positives_in / positives, self.negatives_in / negatives
        rows = float(share_1 @ share_1 + share_0 @ share_0 - share_1 @ share_0) / (1.0 / positives + 1.0 / negatives)
        rarer = self.groups * min(self.value_between, 1.0 - self.value_between)
        return 1.0 + max(rows - 1.0, 0.0) * ASSUMED_ICC * min(1.0, TELLING_GROUPS / max(rarer, 1e-9))

    @property
    def groups(self) -> int:
        """The number of groups."""
        return len(self.positives_in)

    def without_each(self) -> Floats:
        """`value_between` with each group left out, [groups]."""
        touching = self.positives_in * self.negatives_in.sum() + self.negatives_in * self.positives_in.sum()
        wins = self.wins - self.wins_within.sum() - (self.wins_by_positive + self.wins_by_negative - 2.0 * self.wins_within)
        pairs = self.pairs - self.pairs_within.sum() - (touching - 2.0 * self.pairs_within)
        return np.asarray(wins / pairs)


def count_pairs(scores: Floats, labels: Bools, clusters: Clusters) -> Pairs:
    """Count the pairs of `scores` [n]; in O(n log n), by ranks."""
    positive, negative = np.flatnonzero(labels), np.flatnonzero(~labels)
    ranks = midranks(scores)
    wins_by_positive = ranks[positive] - midranks(scores[positive])
    wins_by_negative = len(positive) - (ranks[negative] - midranks(scores[negative]))
    positives_in = clusters.sums(labels.astype(np.float64))
    negatives_in = clusters.sizes - positives_in
    pairs_within = positives_in * negatives_in
    wins_within = np.zeros(clusters.count)
    if pairs_within.any():
        within = clusters.codes * (len(scores) + 1.0) + ranks  # orders by group, then by score, ties kept
        before = np.cumsum(negatives_in) - negatives_in  # the negatives of the groups that come earlier in that order
        gained = midranks(within)[positive] - midranks(within[positive]) - before[clusters.codes[positive]]
        wins_within = clusters.sums_over(positive, gained)
    return Pairs(
        wins=float(wins_by_positive.sum()),
        pairs=float(len(positive) * len(negative)),
        wins_within=wins_within,
        pairs_within=pairs_within,
        wins_by_positive=clusters.sums_over(positive, wins_by_positive),
        wins_by_negative=clusters.sums_over(negative, wins_by_negative),
        positives_in=positives_in,
        negatives_in=negatives_in,
    )


def midranks(values: Floats) -> Floats:
    """Ranks from 1, ties sharing their mean: `scipy.stats.rankdata`, ten times as fast on a few hundred values."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.empty(len(values), dtype=np.bool_)
    first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    ranks = np.empty(len(values))
    if first.all():
        ranks[order] = np.arange(1.0, len(values) + 1.0)
        return ranks
    starts = np.flatnonzero(first)
    ends = np.append(starts[1:], len(values))
    ranks[order] = np.repeat(0.5 * (starts + ends + 1), ends - starts)
    return ranks
