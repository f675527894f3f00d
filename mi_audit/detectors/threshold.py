"""The score above which a detector fires, frozen before any claim is read."""

import math

import numpy as np

from mi_audit.errors import DetectorError
from mi_audit.plan.detectors import FalsePositiveRate, FixedThreshold
from mi_audit.stats.checks import Floats


def calibrate(rule: FalsePositiveRate | FixedThreshold, negatives: Floats) -> Floats:
    """The threshold of each detector in `negatives` [B, n], its scores on n negatives; a detector fires strictly above it.

    For a false positive rate it is the ⌈(1 − rate)(n + 1)⌉-th smallest score (split conformal prediction, Vovk et al. 2005): a new negative, exchangeable with
    these, exceeds it with probability at most the rate. A fixed threshold is the same number for every detector and needs no negatives.

    Raises:
        DetectorError: fewer negatives than can show the rate.
    """
    draws, n = negatives.shape
    if isinstance(rule, FixedThreshold):
        return np.full(draws, rule.value)
    rank = math.ceil((1 - rule.rate) * (n + 1) - 1e-9)
    if rank > n:
        least = math.ceil(1 / rule.rate - 1 - 1e-9)
        raise DetectorError(
            f"a false positive rate of {rule.rate:g} needs at least {least} negatives, {rule.on.name} has {n}; add negatives or allow a higher rate"
        )
    return np.partition(negatives, rank - 1, axis=1)[:, rank - 1]
