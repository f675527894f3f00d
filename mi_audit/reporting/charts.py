"""Interval plots: a claim with its threshold, nulls and baselines, on an axis that all claims of its audit share, as plain numbers for a template to draw."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mi_audit.evidence.records import BaselineRecord, ClaimRecord, NullRecord
from mi_audit.reporting.axis import Axis, Tick
from mi_audit.reporting.text import SHARES, quantity_name
from mi_audit.stats.claim import EFFECTS


@dataclass(frozen=True)
class NullLane:
    """A null: from its median to its quantile towards the claim, in percent of the width. `observed` is what is held against its draws, where that is not the
    estimate itself but what the estimate is the excess of."""

    record: NullRecord
    start: float
    end: float
    observed: float | None


@dataclass(frozen=True)
class BaselineLane:
    """A baseline: its value and interval, in percent of the width."""

    record: BaselineRecord
    at: float
    start: float
    end: float


@dataclass(frozen=True)
class IntervalPlot:
    """One claim on the axis of its audit: places in percent of the width. `side` is where the claim would have the interval, from and to."""

    scale: str
    ticks: tuple[Tick, ...]
    threshold: float
    side: tuple[float, float]
    value: float | None
    low: float | None
    high: float | None
    nulls: tuple[NullLane, ...]
    baselines: tuple[BaselineLane, ...]


def interval_plots(claims: Sequence[ClaimRecord]) -> dict[str, IntervalPlot]:
    """A plot for each claim of an audit, by its id.

    Claims on shares (AUROC, recall, rate, accuracy) have one axis; each other quantity has its own, since its scale is its own, and that of an effect one for
    each experiment.
    """
    scales: dict[tuple[str, str], list[ClaimRecord]] = {}
    for claim in claims:
        key = ("share", "") if claim.quantity in SHARES else (claim.quantity, claim.reading if claim.quantity in EFFECTS else "")
        scales.setdefault(key, []).append(claim)
    plots = {}
    for (scale, _), members in scales.items():
        axis = Axis.over((number for claim in members for number in _numbers(claim)), (0.0, 1.0) if scale == "share" else None)
        for claim in members:
            plots[claim.id] = _plot(claim, "share" if scale == "share" else quantity_name(scale), axis)
    return plots


def _numbers(claim: ClaimRecord) -> Iterator[float]:
    yield from (number for number in (claim.value, claim.low, claim.high, claim.threshold) if number is not None)
    yield from (number for null in claim.nulls for number in (null.median, null.high, *([null.observed] if claim.over_null else [])))
    yield from (number for other in claim.baselines for number in (other.low, other.high))


def _plot(claim: ClaimRecord, scale: str, axis: Axis) -> IntervalPlot:
    def place(value: float | None) -> float | None:
        return None if value is None else axis.at(value)

    threshold = axis.at(claim.threshold)
    return IntervalPlot(
        scale=scale,
        ticks=axis.ticks(),
        threshold=threshold,
        side=(threshold, 100.0) if claim.op in (">=", ">") else (0.0, threshold),
        value=place(claim.value),
        low=place(claim.low),
        high=place(claim.high),
        nulls=tuple(_null(null, axis.at(null.median), axis.at(null.high), axis.at(null.observed) if claim.over_null else None) for null in claim.nulls),
        baselines=tuple(BaselineLane(other, axis.at(other.value), axis.at(other.low), axis.at(other.high)) for other in claim.baselines),
    )


def _null(record: NullRecord, median: float, high: float, observed: float | None) -> NullLane:
    start = min(median, high)
    return NullLane(record, start, round(max(median, high, start + 0.4), 2), observed)
