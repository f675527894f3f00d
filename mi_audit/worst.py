"""Which prompts speak most against a claim."""

from typing import TYPE_CHECKING

import numpy as np

from mi_audit.plan.measurements import ClaimSpec, EstimateSpec
from mi_audit.plan.steering import DoseSpec

if TYPE_CHECKING:
    from mi_audit.causal.laboratory import Laboratory
    from mi_audit.detectors.bench import Bench
    from mi_audit.detectors.readings import ReadingData

SHOWN = 3


def worst_prompts(claim: ClaimSpec, bench: "Bench", lab: "Laboratory") -> tuple[str, ...]:
    """Ids of the prompts, at most three, that speak most against the claim; ties go by id.

    A claim that classes are told apart is hurt by positives that score low and negatives that score high; a claim that a rate or a mean is small by high
    scores, that it is large by low ones. A claim of the other side reverses it. A claim of an experiment is hurt by prompts whose effect moves least to the
    claimed side; of side effects none are named.
    """
    if isinstance(claim.estimate, EstimateSpec):
        return _of_reading(claim, claim.estimate, bench.read(claim.estimate.reading))
    return _of_experiment(claim, claim.estimate, lab)


def _of_experiment(claim: ClaimSpec, spec: DoseSpec, lab: "Laboratory") -> tuple[str, ...]:
    if spec.neutral is not None:
        return ()
    made = lab.experiment(spec.reading)
    moved = made.moved(spec.quantity, spec.strength)
    against = -moved if claim.op in (">", ">=") else moved
    ids = made.suite.ids()
    return tuple(ids[row] for row in sorted(range(len(ids)), key=lambda row: (-against[row], ids[row]))[:SHOWN])


def _of_reading(claim: ClaimSpec, spec: EstimateSpec, data: "ReadingData") -> tuple[str, ...]:
    upward = claim.op in (">", ">=")
    against = -data.values if upward else data.values
    eligible = np.ones(len(data.values), dtype=bool)
    if data.labels is not None and spec.quantity not in ("rate", "mean"):
        against = np.where(data.labels, against, -against)
        if spec.quantity == "recall":
            eligible = data.labels
    order = sorted(np.flatnonzero(eligible), key=lambda index: (-against[index], data.ids[index]))
    return tuple(data.ids[index] for index in order[:SHOWN])
