"""Which prompts speak most against a claim."""

from typing import TYPE_CHECKING

import numpy as np

from mi_audit.plan.measurements import ClaimSpec

if TYPE_CHECKING:
    from mi_audit.detectors.readings import ReadingData

SHOWN = 3


def worst_prompts(claim: ClaimSpec, data: "ReadingData") -> tuple[str, ...]:
    """Ids of the prompts, at most three, that speak most against the claim; ties go by id.

    A claim that classes are told apart is hurt by positives that score low and negatives that score high; a claim that a rate or a mean is small by high
    scores, that it is large by low ones. A claim of the other side reverses it.
    """
    upward = claim.op in (">", ">=")
    against = -data.values if upward else data.values
    eligible = np.ones(len(data.values), dtype=bool)
    if data.labels is not None and claim.estimate.quantity not in ("rate", "mean"):
        against = np.where(data.labels, against, -against)
        if claim.estimate.quantity == "recall":
            eligible = data.labels
    order = sorted(np.flatnonzero(eligible), key=lambda index: (-against[index], data.ids[index]))
    return tuple(data.ids[index] for index in order[:SHOWN])
