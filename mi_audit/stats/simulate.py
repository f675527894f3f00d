"""Made-up data sets of known truth, in groups: what planning and the coverage table draw from."""

import numpy as np
from scipy.special import ndtri

from mi_audit.stats.checks import Bools, Codes, Floats


def group_levels(rng: np.random.Generator, groups: Codes, icc: float) -> Floats:
    """Standard normal values [n] of which two in one group correlate by `icc`; `groups` [n] numbers the groups from 0."""
    shared = rng.standard_normal(int(groups.max()) + 1)[groups]
    return np.asarray(np.sqrt(icc) * shared + np.sqrt(1.0 - icc) * rng.standard_normal(len(groups)))


def binormal_scores(rng: np.random.Generator, labels: Bools, groups: Codes, *, auroc: float, icc: float) -> Floats:
    """Scores [n], normal in each class with standard deviation 1, of which a positive beats a negative of another group with probability `auroc`."""
    return np.asarray(group_levels(rng, groups, icc) + np.sqrt(2.0) * float(ndtri(auroc)) * labels)


def beta_binomial_hits(rng: np.random.Generator, groups: Codes, *, rate: float, icc: float) -> Bools:
    """Outcomes [n] that are true at `rate`; two in one group correlate by `icc`."""
    count = int(groups.max()) + 1
    if icc > 0.0:
        precision = (1.0 - icc) / icc
        rates = rng.beta(rate * precision, (1.0 - rate) * precision, count)
    else:
        rates = np.full(count, rate)
    return np.asarray(rng.random(len(groups)) < rates[groups])
