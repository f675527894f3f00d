"""Controls: what the same measurement gives where there is nothing to find, or without looking inside."""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from mi_audit.stats.checks import checked_alpha, checked_values


def draws_needed(alpha: float) -> int:
    """The least number of draws with which p = (k + 1) / (B + 1) can reach alpha: 39 for 0.025."""
    return math.ceil(round(1.0 / alpha, 9)) - 1


@dataclass(frozen=True)
class Null:
    """The statistic's distribution where there is nothing to find, for instance refitted on labels shuffled within their structure.

    A null is a rank: p = (k + 1) / (B + 1), with k of the B draws at or above what was observed (Phipson & Smyth 2010, arXiv 1603.05766); at or below it where
    what is claimed lies `downward`.
    """

    name: str
    statistics: tuple[float, ...]
    observed: float
    alpha: float = 0.025
    decides: bool = True
    downward: bool = False

    def __post_init__(self) -> None:
        checked_alpha(self.alpha)
        checked_values(f"the draws of the null {self.name!r}", self.statistics)
        checked_values(f"the value observed beside the null {self.name!r}", (self.observed,))

    @property
    def draws(self) -> int:
        """B."""
        return len(self.statistics)

    @property
    def k(self) -> int:
        """How many draws reach what was observed, or go beyond."""
        if self.downward:
            return sum(statistic <= self.observed for statistic in self.statistics)
        return sum(statistic >= self.observed for statistic in self.statistics)

    @property
    def p(self) -> float:
        """(k + 1) / (B + 1)."""
        return (self.k + 1) / (self.draws + 1)

    @property
    def draws_needed(self) -> int:
        """The least B with which p can reach alpha."""
        return draws_needed(self.alpha)

    @property
    def passed(self) -> bool:
        """Whether what was observed beats the null at alpha; with too few draws it never does."""
        return self.p <= self.alpha + 1e-12

    @property
    def reason(self) -> str:
        """Why it did not pass; empty if it did."""
        if self.passed:
            return ""
        if self.draws < self.draws_needed:
            return f"the null {self.name!r} has {self.draws} draws, and p can't reach alpha = {self.alpha:g} with fewer than {self.draws_needed}"
        return f"does not beat the null {self.name!r}: p = {self.p:.3g} ({self.k} of {self.draws} draws reach {self.observed:.3g})"

    def quantile(self, share: float) -> float:
        """The quantile of the draws, by linear interpolation."""
        return float(np.quantile(self.statistics, share))


@dataclass(frozen=True)
class Baseline:
    """What is reached without seeing the model's internals (length, bag of words, the embedding layer), on the same prompts.

    `difference` is the detector's value less the baseline's, paired by prompt, with an interval of one-sided level alpha on each side.
    """

    name: str
    value: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float

    def __post_init__(self) -> None:
        checked_values(f"the baseline {self.name!r}", (self.value, self.low, self.high, self.difference, self.difference_low, self.difference_high))

    @property
    def beaten(self) -> bool:
        """Whether the detector is above the baseline by its whole interval."""
        return self.difference_low > 0.0


@dataclass(frozen=True)
class Controls:
    """The controls of one estimate.

    The nulls that decide must be beaten; the others, baselines and selectivity are reported beside it. Labels shuffled decide wherever they can be shuffled:
    whether random directions do as well is no test of a reading, since a feature that is strong enough shows along most directions.
    """

    nulls: tuple[Null, ...]
    baselines: tuple[Baseline, ...] = ()
    selectivity: float | None = None

    def facing(self, op: str) -> Self:
        """The same controls, with each null ranked towards the side that a claim with this comparison is on."""
        return replace(self, nulls=tuple(replace(null, downward=op in ("<=", "<")) for null in self.nulls))

    @property
    def passed(self) -> bool:
        """Whether there is a null that decides and every such one is beaten."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why they did not pass; empty if they did."""
        deciding = [null for null in self.nulls if null.decides]
        if not deciding:
            return "no null was drawn"
        return "; ".join(null.reason for null in deciding if not null.passed)

    @property
    def above_baselines(self) -> bool:
        """Whether there are baselines and the detector is above each by its whole interval."""
        return bool(self.baselines) and all(baseline.beaten for baseline in self.baselines)
