"""Charts of a reading: ROC curve and score distributions, thinned to a size that does not grow with the suite."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mi_audit.reporting.axis import LARGEST, Axis, Tick

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

BINS: Final = 36
ROC_POINTS: Final = 300
ROC_TABLE: Final = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Roc:
    """An ROC curve in a square of 100 × 100 (y downwards): vertices of its steps, the point at the frozen threshold, and a table of rates."""

    points: tuple[tuple[float, float], ...]
    operating: tuple[float, float] | None
    operating_rates: tuple[float, float] | None
    table: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Series:
    """One class's distribution: outline of its steps in a box of 100 × 100 (y downwards), counts per bin, total."""

    name: str
    points: tuple[tuple[float, float], ...]
    counts: tuple[int, ...]
    total: int


@dataclass(frozen=True)
class Histogram:
    """Score distributions, each as the share of its class per bin. Places on the axis in percent; `edges` [bins + 1] on the detector's scale."""

    series: tuple[Series, ...]
    edges: tuple[float, ...]
    ticks: tuple[Tick, ...]
    threshold: float | None
    highest: float


def roc(scores: Floats, labels: Bools, threshold: float | None) -> Roc | None:
    """The ROC curve of `scores` [n] against `labels` [n]; None with one class only."""
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return None
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits = np.append(0.0, np.cumsum(labels[order])[last_of_tie] / positives)
    alarms = np.append(0.0, np.cumsum(~labels[order])[last_of_tie] / negatives)
    operating = None
    if threshold is not None:
        operating = (float((scores[~labels] > threshold).mean()), float((scores[labels] > threshold).mean()))
    at = np.searchsorted(alarms, ROC_TABLE, side="right") - 1
    kept = _thinned(alarms, hits)
    return Roc(
        points=tuple((round(100 * float(x), 2), round(100 - 100 * float(y), 2)) for x, y in zip(alarms[kept], hits[kept], strict=True)),
        operating=None if operating is None else (round(100 * operating[0], 2), round(100 - 100 * operating[1], 2)),
        operating_rates=operating,
        table=tuple((rate, float(hits[index])) for rate, index in zip(ROC_TABLE, at, strict=True)),
    )


def histogram(scores: Floats, labels: Bools | None, threshold: float | None) -> Histogram:
    """Distributions of `scores` [n] by label; of all prompts together without labels."""
    scores = np.clip(scores, -LARGEST, LARGEST)
    edges = _edges(scores)
    axis = Axis(float(edges[0]), float(edges[-1]))
    named = [("all prompts", scores)] if labels is None else [("positive", scores[labels]), ("negative", scores[~labels])]
    counted = [(name, np.histogram(members, edges)[0], len(members)) for name, members in named if len(members)]
    highest = max(float(counts.max()) / total for _, counts, total in counted)
    return Histogram(
        series=tuple(
            Series(name, _outline(counts / total / highest, edges, axis), tuple(int(count) for count in counts), total) for name, counts, total in counted
        ),
        edges=tuple(float(edge) for edge in edges),
        ticks=axis.ticks(),
        threshold=axis.at(threshold) if threshold is not None and edges[0] <= threshold <= edges[-1] else None,
        highest=highest,
    )


def _thinned(alarms: Floats, hits: Floats) -> NDArray[np.intp]:
    """Indices of the vertices where the curve turns; of at most about ROC_POINTS of them, evenly spread along it. Both ends are among them."""
    across, up = np.diff(alarms), np.diff(hits)
    turns = np.abs(across[1:] * up[:-1] - across[:-1] * up[1:]) > 1e-15
    kept: NDArray[np.intp] = np.flatnonzero(np.concatenate([[True], turns, [True]]))
    if len(kept) <= ROC_POINTS:
        return kept
    path = (alarms + hits)[kept]
    even: NDArray[np.intp] = np.unique(np.append(np.searchsorted(path, np.linspace(0.0, path[-1], ROC_POINTS)), [0, len(kept) - 1]))
    return kept[even]


def _edges(scores: Floats) -> Floats:
    low, high = float(scores.min()), float(scores.max())
    scale = max(abs(low), abs(high), 1.0)
    if high - low <= 1e-12 * scale:
        room = max(0.5, 1e-6 * scale)
        low, high = low - room, high + room
    return np.linspace(low, high, BINS + 1)


def _outline(heights: Floats, edges: Floats, axis: Axis) -> tuple[tuple[float, float], ...]:
    points = [(axis.at(float(edges[0])), 100.0)]
    for height, left, right in zip(heights, edges[:-1], edges[1:], strict=True):
        y = round(100.0 - 100.0 * float(height), 2)
        points += [(axis.at(float(left)), y), (axis.at(float(right)), y)]
    return (*points, (axis.at(float(edges[-1])), 100.0))
