"""The choice of a layer: a probe fitted at every place of a sweep, scored on validation groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mi_audit.detectors.fitting import fitter
from mi_audit.errors import DetectorError
from mi_audit.plan.digest import Json
from mi_audit.plan.places import At
from mi_audit.plan.sweep import SweepSpec
from mi_audit.stats.auroc import auroc
from mi_audit.stats.checks import Floats
from mi_audit.stats.estimate import Estimate
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.suite import Suite

Read = Callable[[Sequence[Prompt], At], Floats]
"""Gives the activations [n, d] of prompts at a place."""


@dataclass(frozen=True, eq=False)
class Point:
    """One place of a curve: the AUROC on the validation groups, or why the method can't be fitted there."""

    at: At
    auroc: Estimate | None
    unfit: str | None = None

    def describe(self) -> dict[str, Json]:
        """JSON-ready."""
        if self.auroc is None:
            return {"layer": self.at.layer, "unfit": self.unfit}
        return {"layer": self.at.layer, "auroc": self.auroc.value, "low": self.auroc.low, "high": self.auroc.high}


@dataclass(frozen=True, eq=False)
class Curve:
    """How well the probe reads at every place, ascending, on the same validation prompts. The best of many AUROCs tends to be too high."""

    points: tuple[Point, ...]
    picked: At
    validation: Suite
    seed: int

    def describe(self) -> dict[str, Json]:
        """JSON-ready, for the detector's card."""
        of: dict[str, Json] = {
            "name": self.validation.name,
            "digest": self.validation.digest,
            "n": len(self.validation),
            "groups": len(set(self.validation.groups())),
        }
        return {"points": [point.describe() for point in self.points], "picked": self.picked.layer, "validation": of, "seed": self.seed}


def choose(spec: SweepSpec, places: Sequence[At], read: Read, alpha: float, seed: int) -> Curve:
    """Fit the probe's method at every place, score it on validation groups, and pick the best AUROC; of equals the first place.

    A place where the method can't be fitted (activations that do not vary, say) stays in the curve without a number and is never picked.

    Args:
        spec: the sweep.
        places: where, in ascending order.
        read: activations of the fit and validation prompts at a place.
        alpha: one-sided level of the curve's intervals.
        seed: of the run; decides which groups validate where no suite is given for it.

    Raises:
        PlanError: too few groups to choose a layer by.
        DetectorError: the method can't be fitted at any place.
    """
    fitted, validation = spec.parts(seed)
    labels, validated = (np.asarray(suite.labels(), dtype=np.bool_) for suite in (fitted, validation))
    points: list[Point] = []
    for at in places:
        try:
            directions = fitter(spec.method, read(fitted.prompts, at), labels, fitted.groups()).fit(labels[None])
        except DetectorError as error:
            points.append(Point(at, None, str(error)))
            continue
        (scores,) = directions.scores(read(validation.prompts, at))
        points.append(Point(at, auroc(scores, validated, validation.groups(), alpha=alpha)))
    scored = [(point.auroc.value, point.at) for point in points if point.auroc is not None]
    if not scored:
        raise DetectorError(f"{spec.name} on {fitted.name}: no probe can be fitted at any of {len(places)} places; at {places[0]}: {points[0].unfit}")
    best = max(value for value, _ in scored)
    return Curve(tuple(points), next(at for value, at in scored if value == best), validation, seed)
