"""The delete-a-group jackknife and the interval built on it."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import stdtrit

from mi_audit.stats.checks import Floats
from mi_audit.stats.limits import LEAST_GROUPS_OF_MEANS, MOST_SKEWNESS


@dataclass(frozen=True, eq=False)
class Jackknife:
    """A statistic, and how far each group's removal shifts it.

    `worth` is the number of groups of equal size that would tell as much; between classes, of the class that has fewer.
    `scale` is the size of the numbers that it was computed from: shifts of its rounding error are none.
    """

    value: float
    shifts: Floats
    worth: float
    scale: float = 1.0

    @classmethod
    def of(cls, value: float, without_each: Floats, worth: float, scale: float = 1.0) -> Self:
        """From the statistic on all groups and on all but each, [groups]."""
        return cls(value=value, shifts=without_each - value, worth=worth, scale=scale)

    @property
    def variance(self) -> float:
        """(G - 1) / G times the sum of squared shifts (Efron & Stein 1981): the CR3 cluster-robust variance of a mean, exact for groups of equal size."""
        count = len(self.shifts)
        return float((count - 1) / count * (self.shifts @ self.shifts))

    @property
    def skewness(self) -> float:
        """The skewness of the statistic's distribution, estimated: that of the shifts over the root of the number of groups."""
        squares = float(self.shifts @ self.shifts)
        return float(-np.sum(self.shifts**3) / squares**1.5) if squares > 0.0 else 0.0

    def unreliable(self, quantity: str) -> tuple[str, ...]:
        """The reasons against deciding on these groups, if any."""
        if np.abs(self.shifts).max() <= 1e-13 * self.scale:
            return ("the interval has no width: all groups agree exactly, which shows nothing of the error",)
        reasons = []
        if self.worth < LEAST_GROUPS_OF_MEANS - 1e-9:
            worth = f"{len(self.shifts)} groups that are worth {self.worth:.1f} (of the rarer class, sizes being uneven)"
            reasons.append(f"{worth}: the interval of {quantity} is validated from {LEAST_GROUPS_OF_MEANS} up")
        if abs(self.skewness) > MOST_SKEWNESS:
            seen = f"the skewness of its distribution is {self.skewness:.2f}, validated up to {MOST_SKEWNESS:g}"
            reasons.append(f"a few groups carry the result: {seen}")
        return tuple(reasons)

    def bounds(self, alpha: float) -> tuple[float, float]:
        """One-sided bounds at `alpha`: those of Student's t with worth - 1 degrees of freedom, each pushed outwards, never inwards, to that of Hall's
        transformation of the t statistic (Hall 1992, J. R. Stat. Soc. B 54), which allows for skewness.

        The skewness allowed for is twice what is seen and 1.5 standard errors more towards that bound: a sample shows less skewness than there is.
        """
        quantile = float(stdtrit(max(self.worth - 1.0, 1.0), 1.0 - alpha))
        error = self.variance**0.5
        seen, unsure = 2.0 * self.skewness, 1.5 * 6.0**0.5 / self.worth
        down = max(quantile, _hall(quantile, seen - unsure))
        up = max(quantile, -_hall(-quantile, seen + unsure))
        return self.value - down * error, self.value + up * error


def _hall(quantile: float, skewness: float) -> float:
    """The quantile of a t statistic whose numerator has this skewness: the inverse of t + s t²/3 + s² t³/27 + s/6."""
    if abs(skewness) < 1e-9:
        return quantile
    return float(3.0 / skewness * (np.cbrt(1.0 + skewness * (quantile - skewness / 6.0)) - 1.0))


def two_class_df(positive_parts: Floats, negative_parts: Floats, positives_in: Floats, negatives_in: Floats) -> float:
    """Degrees of freedom of a difference between classes, after Welch and Satterthwaite, at most groups - 1.

    The parts are each group's contribution to the error through its positives and through its negatives, [groups]; `…_in` the rows it has of each class.
    """
    groups_1, groups_0 = worth_of(positives_in), worth_of(negatives_in)
    v1, v0 = float(positive_parts @ positive_parts), float(negative_parts @ negative_parts)
    most = worth_of(positives_in + negatives_in) - 1.0
    if v1 + v0 == 0.0:
        return max(1.0, min(groups_1 - 1.0, groups_0 - 1.0, most))
    welch = (v1 + v0) ** 2 / (v1**2 / max(groups_1 - 1.0, 1e-9) + v0**2 / max(groups_0 - 1.0, 1e-9))
    return max(1.0, min(welch, most))


def worth_of(rows_in: Floats) -> float:
    """The number of groups of equal size that would count as much as groups with these rows."""
    return float(rows_in.sum() ** 2 / (rows_in @ rows_in))
