"""Estimate: a number measured on a sample, with what is known of its error."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, NoReturn

from mi_audit.errors import ClaimComparisonError
from mi_audit.stats.claim import BOUNDED, Claim, compare
from mi_audit.stats.controls import Controls
from mi_audit.stats.spread import Unwidened

_TITLES: Final = {"auroc": "AUROC"}


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """A quantity, its value and its interval.

    Each bound has the one-sided level `alpha`: the truth lies below `low` with probability at most alpha, and above `high` with probability at most alpha.
    `n` counts prompts, `groups` the clusters (templates, entities, pairs) that they come in. `undecided` holds the reasons, if any, for which nothing can be
    decided on this estimate, and `unwidened` what the interval was before it was widened for scores in low precision. Comparing an estimate with a number
    (`>=`, `>`, `<=`, `<`) gives a Claim; any other comparison is an error.
    """

    quantity: str
    value: float
    low: float
    high: float
    alpha: float
    n: int
    n_positive: int | None
    groups: int
    method: str
    undecided: tuple[str, ...] = ()
    of: str = ""
    controls: Controls | None = None
    spec: Hashable | None = None
    unwidened: Unwidened | None = None

    __array_ufunc__ = None  # so that a NumPy number on the left hands the comparison over to the estimate

    def __ge__(self, threshold: object) -> Claim:
        return compare(self, ">=", threshold)

    def __gt__(self, threshold: object) -> Claim:
        return compare(self, ">", threshold)

    def __le__(self, threshold: object) -> Claim:
        return compare(self, "<=", threshold)

    def __lt__(self, threshold: object) -> Claim:
        return compare(self, "<", threshold)

    def __eq__(self, other: object) -> NoReturn:
        raise ClaimComparisonError(f"{self.quantity}() == … is no claim: a sample can't show equality. Claim a bound with >= or <=, or both.")

    def __ne__(self, other: object) -> NoReturn:
        raise ClaimComparisonError(f"{self.quantity}() != … is no claim: claim a bound with >= or <=.")

    __hash__ = object.__hash__

    def __bool__(self) -> NoReturn:
        raise ClaimComparisonError(f"{self.quantity}() is a number, not a verdict: compare it with a threshold.")

    def __str__(self) -> str:
        return described(self.quantity, self.value, self.low, self.high, self.n, self.groups)

    __repr__ = __str__


def described(quantity: str, value: float, low: float, high: float, n: int, groups: int) -> str:
    """An estimate in a line: "AUROC 0.912 [0.871, 0.943] (n = 240, 40 groups)"."""
    form = _share if quantity in BOUNDED else _number
    title = _TITLES.get(quantity, quantity.replace("_", " "))
    clusters = f", {groups} groups" if groups != n else ""
    return f"{title} {form(value)} [{form(low)}, {form(high)}] (n = {n}{clusters})"


def _share(value: float) -> str:
    return f"{value:.3f}" if value == 0.0 or value >= 0.01 else f"{value:.2g}"


def _number(value: float) -> str:
    return f"{value:.4g}"
