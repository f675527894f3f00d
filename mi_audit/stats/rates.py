"""Rates of yes-or-no outcomes in groups: rate, recall, accuracy."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, stdtrit

from mi_audit.errors import StatisticsError
from mi_audit.stats.checks import Clusters, Floats, checked_alpha, checked_clusters, checked_flags
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.limits import ASSUMED_ICC, TELLING_GROUPS, unvalidated

QUANTITIES: Final = ("rate", "recall", "accuracy")


def rate(hits: ArrayLike, groups: ArrayLike, *, alpha: float = 0.025, quantity: str = "rate") -> Estimate:
    """The share of `hits` [n] that are true, with its interval.

    Where every row is its own group: Clopper & Pearson (1934), exact. In groups: Clopper–Pearson on the effective sample size n / deff, reduced for the
    degrees of freedom (Korn & Graubard 1998, Survey Methodology 24). deff is the larger of the design effect observed and the one that a within-group
    correlation of 0.3 gives; the latter fades once groups x (share of the rarer outcome) passes 15, where the data show the correlation themselves.

    Raises:
        StatisticsError: wrong shapes or types, or a quantity that is not "rate", "recall" or "accuracy".
    """
    if quantity not in QUANTITIES:
        raise StatisticsError(f"quantity must be one of {', '.join(QUANTITIES)}, got {quantity!r}.")
    alpha = checked_alpha(alpha)
    flags = checked_flags("hits", hits)
    clusters = checked_clusters(groups, len(flags))
    n, count = len(flags), int(np.count_nonzero(flags))
    grouped = clusters.count < n
    if grouped and clusters.count < 2:
        low, high = 0.0, 1.0
    else:
        low, high = clopper_pearson(count / n, effective_n(flags.astype(np.float64), clusters, alpha) if grouped else n, alpha)
    return Estimate(
        quantity=quantity,
        value=count / n,
        low=low,
        high=high,
        alpha=alpha,
        n=n,
        n_positive=None,
        groups=clusters.count,
        method="Clopper–Pearson on the effective sample size (Korn–Graubard)" if grouped else "Clopper–Pearson",
        undecided=unvalidated(quantity, n, clusters.count, alpha),
    )


def clopper_pearson(share: float, n: float, alpha: float) -> tuple[float, float]:
    """The exact interval of a binomial share, each bound one-sided at `alpha`; `n` need not be whole."""
    low = 0.0 if share <= 0.0 else float(betaincinv(share * n, (1.0 - share) * n + 1.0, alpha))
    high = 1.0 if share >= 1.0 else float(betaincinv(share * n + 1.0, (1.0 - share) * n, 1.0 - alpha))
    return low, high


def effective_n(hits: Floats, clusters: Clusters, alpha: float) -> float:
    """The number of independent rows that tell as much about a share as `hits` [n] in their groups do; at least 2 groups."""
    n, groups = len(hits), clusters.count
    share = float(hits.mean())
    independent = share * (1.0 - share) / n
    off = clusters.sums(hits) - share * clusters.sizes
    observed = groups / (groups - 1) * float(off @ off) / n**2 / independent if independent else 1.0
    rarer = groups * min(share, 1.0 - share)
    assumed = 1.0 + (clusters.mean_size - 1.0) * ASSUMED_ICC * min(1.0, TELLING_GROUPS / max(rarer, 1e-9))
    quantiles = stdtrit(n - 1, 1.0 - alpha) / stdtrit(max(clusters.effective_count - 1.0, 1.0), 1.0 - alpha)
    return float(n / max(observed, assumed) * quantiles**2)
