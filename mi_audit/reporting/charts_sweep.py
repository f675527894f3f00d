"""The curve of a layer sweep, as plain numbers for a template to draw."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from mi_audit.evidence.records import ClaimRecord, CurvePoint, DetectorRecord
from mi_audit.reporting.axis import Axis, Tick

CHANCE: Final = 0.5
_MARGIN: Final = 9.0


@dataclass(frozen=True)
class Mark:
    """A layer on the chart: places in percent, `x` from the left, the others from the top; None where nothing could be fitted."""

    record: CurvePoint
    x: float
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SweepChart:
    """A curve. `segments` join neighbouring layers (x, y, x, y); `caveats` are those of any layer, each once."""

    detector: DetectorRecord
    marks: tuple[Mark, ...]
    segments: tuple[tuple[float, float, float, float], ...]
    picked: Mark
    layers: tuple[Tick, ...]
    shares: tuple[Tick, ...]
    chance: float | None
    caveats: tuple[str, ...]


@dataclass(frozen=True)
class SweepView:
    """A swept detector in an audit's card: drawn there (`chart`), or in the card before that shows it first."""

    number: int
    detector: DetectorRecord
    chart: SweepChart | None


def sweep_views(cards: Iterable[tuple[str, Iterable[ClaimRecord]]], detectors: Iterable[DetectorRecord]) -> dict[str, tuple[SweepView, ...]]:
    """The swept detectors of each card, by its key; every curve is drawn once, in the first card that uses it."""
    swept = {detector.digest: (number, detector) for number, detector in enumerate((each for each in detectors if each.curve), start=1)}
    drawn: set[str] = set()
    views: dict[str, tuple[SweepView, ...]] = {}
    for key, claims in cards:
        used = [digest for digest in dict.fromkeys(claim.detector_digest for claim in claims) if digest in swept]
        views[key] = tuple(SweepView(*swept[digest], None if digest in drawn else sweep_chart(swept[digest][1])) for digest in used)
        drawn.update(used)
    return views


def sweep_chart(detector: DetectorRecord) -> SweepChart:
    """The chart of a detector with a curve of which one layer was picked."""
    points = detector.curve
    across = Axis(points[0].layer, points[-1].layer, _MARGIN)
    up = Axis.over((value for point in points for value in (point.auroc, point.low, point.high, CHANCE) if value is not None), (0.0, 1.0))

    def height(value: float | None) -> float | None:
        return None if value is None else round(100.0 - up.at(value), 2)

    marks = tuple(Mark(point, across.at(point.layer), height(point.auroc), height(point.low), height(point.high)) for point in points)
    return SweepChart(
        detector=detector,
        marks=marks,
        segments=tuple((a.x, a.value, b.x, b.value) for a, b in pairwise(marks) if a.value is not None and b.value is not None),
        picked=next(mark for mark in marks if mark.record.picked),
        layers=tuple(tick for tick in across.ticks(10) if "." not in tick.label),
        shares=tuple(Tick(round(100.0 - tick.at, 2), tick.label) for tick in up.ticks()),
        chance=height(CHANCE),
        caveats=tuple(dict.fromkeys(caveat for point in points if point.auroc is not None for caveat in point.caveats)),
    )
