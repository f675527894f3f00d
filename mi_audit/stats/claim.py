"""Claim: an estimate held against a threshold, and the verdict on it."""

import math
import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from mi_audit.errors import ClaimComparisonError, InconclusiveError, StatisticsError
from mi_audit.stats.needed import Needed, needed
from mi_audit.stats.verdict import Verdict

if TYPE_CHECKING:
    from mi_audit.stats.controls import Controls
    from mi_audit.stats.estimate import Estimate

BOUNDED: Final = frozenset({"auroc", "recall", "rate", "accuracy"})
DISCRIMINATING: Final = frozenset({"auroc", "recall", "accuracy", "mean_difference", "paired_difference", "effect_size"})
EFFECTS: Final = frozenset({"slope", "change", "smallest_step", "sign_reversal"})
SIDE_EFFECTS: Final = frozenset({"kl", "loss_change", "repetition_change", "capability_change"})
QUANTITIES: Final = BOUNDED | DISCRIMINATING | EFFECTS | SIDE_EFFECTS | {"mean"}
OPERATORS: Final = (">=", ">", "<=", "<")
INSTRUMENT_NOT_RUN: Final = "the audit of the instrument {} did not run to its end"
"""Why a claim about the model is capped whose instrument was not audited; takes the audit's id."""

_listener: ContextVar["Callable[[Claim], None] | None"] = ContextVar("listener", default=None)


@dataclass(frozen=True, eq=False)
class Claim:
    """An estimate, what is claimed of it, and the verdict with its reasons."""

    estimate: "Estimate"
    op: str
    threshold: float
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    needed: Needed | None = None

    @property
    def text(self) -> str:
        """What is claimed: "auroc() >= 0.9", or "slope() > null.slope()"."""
        quantity = self.estimate.quantity
        if self.estimate.excess:
            more = f" + {self.threshold!r}" if self.threshold else ""
            return f"{quantity}() {self.op} null.{quantity}(){more}"
        return f"{quantity}() {self.op} {self.threshold!r}"

    @property
    def controls(self) -> "Controls | None":
        """The estimate's controls; those of an effect are ranked towards the side claimed."""
        controls = self.estimate.controls
        return controls.facing(self.op) if controls is not None and self.estimate.quantity in EFFECTS else controls

    def capped(self, reason: str) -> "Claim":
        """The same claim, at best INCONCLUSIVE for `reason`; a FAIL stays as it is."""
        if self.verdict is Verdict.FAIL:
            return self
        return replace(self, verdict=Verdict.INCONCLUSIVE, reasons=(*self.reasons, reason))

    def __bool__(self) -> bool:
        if self.verdict is Verdict.INCONCLUSIVE:
            data = f" It would take {self.needed} to decide it if the observed value is the truth." if self.needed else ""
            raise InconclusiveError(f"{self.text} is INCONCLUSIVE on {self.estimate}: {'; '.join(self.reasons)}.{data}")
        return self.verdict is Verdict.PASS

    def __str__(self) -> str:
        why = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.verdict}: {self.text} on {self.estimate}{why}"

    __repr__ = __str__


def decide(estimate: "Estimate", op: str, threshold: float) -> Claim:
    """Hold `estimate` against `threshold`.

    PASS where the whole interval is on the claimed side, FAIL where it is on the other, else INCONCLUSIVE. INCONCLUSIVE too, whatever the bounds, where the
    estimate carries reasons for which nothing can be decided; and a claim that `needs_null` passes only with controls that passed.

    Raises:
        ClaimComparisonError: the threshold is not a finite real number.
        StatisticsError: no data could fail the claim, or none could pass it.
    """
    threshold = checked_threshold(estimate.quantity, op, threshold)
    if empty := vacuous(estimate.quantity, op, threshold):
        raise StatisticsError(empty)
    verdict = by_bounds(estimate, op, threshold)
    if verdict is Verdict.FAIL:
        return Claim(estimate, op, threshold, verdict)
    if verdict is Verdict.INCONCLUSIVE:
        within = f"the interval [{estimate.low:.4g}, {estimate.high:.4g}] is on both sides of {threshold:g}"
        if estimate.unwidened and _side(estimate.unwidened.low, estimate.unwidened.high, op, threshold) is not Verdict.INCONCLUSIVE:
            within = f"{within}, but only because of precision: {estimate.unwidened.reason}"
        return Claim(estimate, op, threshold, verdict, estimate.undecided or (within,), needed(estimate, op, threshold))
    claim = Claim(estimate, op, threshold, Verdict.PASS)
    if not needs_null(estimate.quantity, op, threshold):
        return claim
    if claim.controls is None:
        return claim.capped("controls were switched off")
    return claim if claim.controls.passed else claim.capped(claim.controls.reason)


def needs_null(quantity: str, op: str, threshold: float) -> bool:
    """Whether a claim says that there is something to find, and so passes only where it beats its null.

    That is a quantity that tells classes apart, claimed to be large; or an effect claimed to be on one side of 0, whichever. An effect claimed to be small is
    not: it is bounded on the side away from 0.
    """
    upward = op in (">=", ">")
    if quantity in EFFECTS:
        return threshold >= 0.0 if upward else threshold <= 0.0
    return upward and quantity in DISCRIMINATING


def by_bounds(estimate: "Estimate", op: str, threshold: float) -> Verdict:
    """The verdict that the interval alone gives, controls aside."""
    if estimate.undecided:
        return Verdict.INCONCLUSIVE
    return _side(estimate.low, estimate.high, op, threshold)


def _side(low: float, high: float, op: str, threshold: float) -> Verdict:
    """On which side of the threshold the interval is."""
    passes, fails = {
        ">=": (low >= threshold, high < threshold),
        ">": (low > threshold, high <= threshold),
        "<=": (high <= threshold, low > threshold),
        "<": (high < threshold, low >= threshold),
    }[op]
    return Verdict.PASS if passes else Verdict.FAIL if fails else Verdict.INCONCLUSIVE


def compare(estimate: "Estimate", op: str, threshold: object) -> Claim:
    """`decide`, and tell the listener: what the comparison operators of an estimate do."""
    claim = decide(estimate, op, checked_threshold(estimate.quantity, op, threshold))
    if (listener := _listener.get()) is not None:
        listener(claim)
    return claim


@contextmanager
def claims_heard_by(listener: Callable[[Claim], None]) -> Iterator[None]:
    """Within the block every comparison of an estimate calls `listener` with its claim; the innermost block hears it."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def checked_threshold(quantity: str, op: str, threshold: object) -> float:
    """The threshold as a float.

    Raises:
        ClaimComparisonError: it is not a finite real number, or the operator is none of the four.
    """
    if op not in OPERATORS:
        raise ClaimComparisonError(f"{op!r} makes no claim: use one of {', '.join(OPERATORS)}.")
    if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real) or not math.isfinite(threshold):
        raise ClaimComparisonError(
            f"{quantity}() {op} {threshold!r} is no claim: compare with a finite number that is written in the audit"
            " (two estimates are compared by their paired difference, not by their values)."
        )
    return float(threshold)


def vacuous(quantity: str, op: str, threshold: float) -> str | None:
    """Why no data could fail the claim, or none could pass it; None if it can go either way."""
    text = f"{quantity}() {op} {threshold!r}"
    upward = op in (">=", ">")
    if quantity == "kl" and threshold <= 0.0:
        why = "claims nothing: kl is never negative, so no data could fail it" if upward else "can't be shown: kl is never negative, so no data could pass it"
        return f"{text} {why}. Choose a threshold above 0."
    if quantity in ("repetition_change", "capability_change") and not -1.0 < threshold < 1.0:
        return f"{text} decides nothing: a share changes by less than 1. Choose a threshold strictly between -1 and 1."
    if quantity not in BOUNDED or 0.0 < threshold < 1.0:
        return None
    if (threshold <= 0.0) == upward:
        return f"{text} claims nothing: {quantity} lies between 0 and 1, so no data could fail it. Choose a threshold strictly between."
    return f"{text} can't be shown: a sample leaves room beside {1 if upward else 0}, so no data could pass it. Choose a threshold strictly between 0 and 1."
