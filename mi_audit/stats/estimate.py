"""Estimate: a number measured on a sample, with what is known of its error."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from mi_audit.errors import ClaimComparisonError
from mi_audit.stats.claim import BOUNDED, Claim, compare
from mi_audit.stats.controls import Controls
from mi_audit.stats.spread import Unwidened

_TITLES: Final = {"auroc": "AUROC", "kl": "KL"}


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """A quantity, its value and its interval.

    Each bound has the one-sided level `alpha`: the truth lies below `low` with probability at most alpha, and above `high` with probability at most alpha.
    `n` counts prompts, `groups` the clusters (templates, entities, pairs) that they come in. `undecided` holds the reasons, if any, for which nothing can be
    decided on this estimate, and `unwidened` what the interval was before it was widened for scores in low precision. `excess` says that it is the quantity
    less what the null has of it. Comparing an estimate with a number, or with what its own null has (`>=`, `>`, `<=`, `<`), gives a Claim; any other
    comparison is an error.
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
    excess: bool = False

    __array_ufunc__ = None  # so that a NumPy number on the left hands the comparison over to the estimate

    def __ge__(self, threshold: object) -> Claim:
        return _compared(self, ">=", threshold)

    def __gt__(self, threshold: object) -> Claim:
        return _compared(self, ">", threshold)

    def __le__(self, threshold: object) -> Claim:
        return _compared(self, "<=", threshold)

    def __lt__(self, threshold: object) -> Claim:
        return _compared(self, "<", threshold)

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


@dataclass(frozen=True, eq=False, repr=False)
class NullLevel:
    """What the null has of a quantity: the other side of `sweep.slope() > sweep.null.slope()`, and of nothing else.

    It is no number by itself: the estimate with `of_spec` is compared with it prompt by prompt, and `over` estimates how much that has in excess of the null.
    """

    over: Estimate
    of_spec: Hashable
    quantity: str

    __array_ufunc__ = None  # as for an estimate

    def beaten_by(self, estimate: Estimate) -> Estimate:
        """The excess of `estimate`.

        Raises:
            ClaimComparisonError: it is another quantity, or that of another sweep.
        """
        if estimate.quantity != self.quantity:
            raise ClaimComparisonError(f"{estimate.quantity}() is compared with {self}: compare it with null.{estimate.quantity}().")
        if estimate.spec is None or estimate.spec != self.of_spec:
            raise ClaimComparisonError(
                f"{estimate.quantity}() is compared with the null of another sweep, or of another strength: prompts are compared one by one, so take both from"
                f" the same one, sweep.{estimate.quantity}() and sweep.null.{estimate.quantity}()."
            )
        return self.over

    def _compared(self, other: object) -> Any:
        if not isinstance(other, Estimate):
            self._used()
        return NotImplemented  # so that the estimate on the other side is asked

    def _used(self, *_: object) -> NoReturn:
        claim = f"sweep.{self.quantity}() > sweep.{self} is a claim"
        raise ClaimComparisonError(f"{self} is only for an estimate to be compared with, which stands on the left: {claim}.")

    __ge__ = __gt__ = __le__ = __lt__ = _compared
    __bool__ = __float__ = __int__ = __index__ = __round__ = __abs__ = __neg__ = _used
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _used
    __eq__ = __ne__ = _used
    __hash__ = object.__hash__

    def __str__(self) -> str:
        return f"null.{self.quantity}()"

    __repr__ = __str__


def _compared(estimate: Estimate, op: str, threshold: object) -> Claim:
    """The claim of a comparison; with what the null has, it is that the excess over it is on this side of 0."""
    if isinstance(threshold, NullLevel):
        return compare(threshold.beaten_by(estimate), op, 0.0)
    return compare(estimate, op, threshold)


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
