"""Charts of an experiment over its strengths, its side effects on the same axis, and its slope over layers, as plain numbers for a template to draw.

Places are in percent of the plot, `x` from the left and all others from the top. A line breaks where a strength failed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from mi_audit.evidence.experiments import DosePoint, ExperimentRecord, SideEffectCurve
from mi_audit.evidence.records import ClaimRecord
from mi_audit.reporting.axis import Axis, Tick
from mi_audit.reporting.text import number

_MARGIN: Final = 9.0
_APART: Final = 4.5
_BESIDE: Final = 2.5

Path = tuple[tuple[float, float], ...]
"""Vertices (x, y)."""


@dataclass(frozen=True)
class Dot:
    """A number with its interval."""

    x: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Band:
    """A null over the strengths: `areas` from its low to its high quantile, `medians` along its median; where the model as it is stands for 0, all are 0 there.
    `bars` (x, low, high): strengths without a neighbour to be joined to, each null beside the dot, not under it."""

    name: str
    draws: int
    areas: tuple[Path, ...]
    medians: tuple[Path, ...]
    bars: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class DoseChart:
    """The change of the effect over the strengths. `zero`: no change; `origin`: where the model as it is stands for the strength 0."""

    dots: tuple[Dot, ...]
    lines: tuple[Path, ...]
    bands: tuple[Band, ...]
    direct: tuple[Path, ...]
    direct_dots: Path
    failed: tuple[tuple[float, DosePoint], ...]
    zero: float
    origin: tuple[float, float] | None
    strengths: tuple[Tick, ...]
    changes: tuple[Tick, ...]


@dataclass(frozen=True)
class Bound:
    """What a claim of the run bounds a side effect by, and the strengths farthest from 0, at most one of each sign, whose interval is wholly within it."""

    op: str
    threshold: float
    at: float
    within: tuple[float, ...]


@dataclass(frozen=True)
class SidePlot:
    """A side effect over the strengths."""

    curve: SideEffectCurve
    dots: tuple[Dot, ...]
    lines: tuple[Path, ...]
    bounds: tuple[Bound, ...]
    zero: float
    origin: tuple[float, float] | None
    values: tuple[Tick, ...]


@dataclass(frozen=True)
class ProfileChart:
    """The slope over layers; `own` is the experiment's own layer, where it lies among them."""

    dots: tuple[Dot, ...]
    line: Path
    zero: float
    own: float | None
    layers: tuple[Tick, ...]
    slopes: tuple[Tick, ...]


class _Bounded(Protocol):
    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def dose_chart(experiment: ExperimentRecord) -> DoseChart:
    """The dose–response of an experiment."""
    points = experiment.points
    numbers = [each for point in points for each in (point.change, point.low, point.high, point.direct) if each is not None]
    numbers += [each for point in points for band in point.nulls for each in (band.low, band.median, band.high)]
    across, up = _across(experiment), Axis.over([0.0, *numbers])
    origin = (across.at(0.0), _height(up, 0.0)) if experiment.origin else None
    measured = [(point.strength, None if point.failed is not None else point) for point in points]
    dots = [
        Dot(across.at(point.strength), *(_height(up, each) for each in (point.change, point.low, point.high)))
        for point in points
        if point.change is not None and point.low is not None and point.high is not None
    ]
    direct = [(strength, None if point is None else point.direct) for strength, point in measured]
    names = dict.fromkeys((band.name, band.draws) for point in points for band in point.nulls)
    return DoseChart(
        dots=tuple(dots),
        lines=_lines([(strength, None if point is None else point.change) for strength, point in measured], experiment.origin, across, up),
        bands=tuple(_band(*name, points, experiment.origin, across, up, beside) for beside, name in enumerate(names, start=1)),
        direct=_lines(direct, experiment.origin, across, up),
        direct_dots=tuple((across.at(strength), _height(up, value)) for strength, value in direct if value is not None),
        failed=tuple((across.at(point.strength), point) for point in points if point.failed is not None),
        zero=_height(up, 0.0),
        origin=origin,
        strengths=_labels([*(point.strength for point in points), *([0.0] if experiment.origin else [])], across),
        changes=_ticks(up, 5),
    )


def side_plot(experiment: ExperimentRecord, curve: SideEffectCurve, claims: Iterable[ClaimRecord]) -> SidePlot:
    """A side effect on the axis of its experiment, with the bounds that `claims` set for it."""
    bounding = dict.fromkeys(
        (claim.op, claim.threshold) for claim in claims if (claim.reading, claim.quantity, claim.on) == (experiment.id, curve.quantity, curve.suite)
    )
    across = _across(experiment)
    numbers = [each for point in curve.points for each in (point.value, point.low, point.high)]
    up = Axis.over([0.0, *numbers, *(threshold for _, threshold in bounding)])
    values = {point.strength: point.value for point in curve.points}
    every = sorted({*values, *(point.strength for point in experiment.points)})
    return SidePlot(
        curve=curve,
        dots=tuple(Dot(across.at(point.strength), *(_height(up, each) for each in (point.value, point.low, point.high))) for point in curve.points),
        lines=_lines([(strength, values.get(strength)) for strength in every], experiment.origin, across, up),
        bounds=tuple(Bound(op, threshold, _height(up, threshold), _farthest_within(curve, op, threshold)) for op, threshold in bounding),
        zero=_height(up, 0.0),
        origin=(across.at(0.0), _height(up, 0.0)) if experiment.origin else None,
        values=_ticks(up, 3),
    )


def profile_chart(experiment: ExperimentRecord) -> ProfileChart | None:
    """The experiment at other layers; None where it was made at its own only."""
    points = experiment.profile
    if not points:
        return None
    layers = [point.layer for point in points]
    own = [] if experiment.layer is None else [experiment.layer]
    across, up = (
        _from_to([float(layer) for layer in [*layers, *own]]),
        Axis.over([0.0, *(each for point in points for each in (point.slope, point.low, point.high))]),
    )
    dots = tuple(Dot(across.at(point.layer), *(_height(up, each) for each in (point.slope, point.low, point.high))) for point in points)
    return ProfileChart(
        dots=dots,
        line=tuple((dot.x, dot.value) for dot in dots),
        zero=_height(up, 0.0),
        own=None if experiment.layer is None else across.at(experiment.layer),
        layers=tuple(tick for tick in across.ticks(10) if "." not in tick.label),
        slopes=_ticks(up, 4),
    )


def _farthest_within(curve: SideEffectCurve, op: str, threshold: float) -> tuple[float, ...]:
    """A strength is within a bound where its whole interval is."""
    within = [point.strength for point in curve.points if _is_within(point, op, threshold)]
    below, above = [each for each in within if each < 0], [each for each in within if each >= 0]
    return (*below[:1], *above[-1:])


def _is_within(point: _Bounded, op: str, threshold: float) -> bool:
    match op:
        case "<=":
            return point.high <= threshold
        case "<":
            return point.high < threshold
        case ">=":
            return point.low >= threshold
        case _:
            return point.low > threshold


def _band(name: str, draws: int, points: Sequence[DosePoint], origin: bool, across: Axis, up: Axis, beside: int) -> Band:
    found = [(point.strength, next((band for band in point.nulls if (band.name, band.draws) == (name, draws)), None)) for point in points]
    lows, medians, highs = (
        _lines([(strength, None if band is None else getattr(band, edge)) for strength, band in found], origin, across, up, alone=True)
        for edge in ("low", "median", "high")
    )
    return Band(
        name=name,
        draws=draws,
        areas=tuple((*high, *reversed(low)) for low, high in zip(lows, highs, strict=True) if len(low) > 1),
        medians=tuple(line for line in medians if len(line) > 1),
        bars=tuple((round(low[0][0] + beside * _BESIDE, 2), low[0][1], high[0][1]) for low, high in zip(lows, highs, strict=True) if len(low) == 1),
    )


def _lines(values: Sequence[tuple[float, float | None]], origin: bool, across: Axis, up: Axis, *, alone: bool = False) -> tuple[Path, ...]:
    """Values at ascending strengths, with 0 at the strength 0 where the model as it is stands there; cut where there is none. A vertex without neighbours is
    left out, but where it may stand `alone`."""
    known = [*values, *([(0.0, 0.0)] if origin and any(value is not None for _, value in values) else [])]
    runs: list[list[tuple[float, float]]] = [[]]
    for strength, value in sorted(known, key=lambda pair: pair[0]):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((across.at(strength), _height(up, value)))
    return tuple(tuple(run) for run in runs if len(run) > (0 if alone else 1))


def _across(experiment: ExperimentRecord) -> Axis:
    return _from_to([*(point.strength for point in experiment.points), *([0.0] if experiment.origin else [])])


def _from_to(values: list[float]) -> Axis:
    low, high = min(values, default=0.0), max(values, default=0.0)
    return Axis(low, high, _MARGIN) if high > low else Axis(low - 1.0, high + 1.0, _MARGIN)


def _height(up: Axis, value: float) -> float:
    return round(100.0 - up.at(value), 2)


def _ticks(up: Axis, about: int) -> tuple[Tick, ...]:
    return tuple(Tick(round(100.0 - tick.at, 2), tick.label) for tick in up.ticks(about))


def _labels(strengths: Iterable[float], across: Axis) -> tuple[Tick, ...]:
    """Every strength; those too close to their neighbour for a text without one."""
    ticks: list[Tick] = []
    labelled = -100.0
    for strength in sorted(strengths):
        at = across.at(strength)
        ticks.append(Tick(at, number(strength + 0.0) if at - labelled >= _APART else ""))
        labelled = at if ticks[-1].label else labelled
    return tuple(ticks)
