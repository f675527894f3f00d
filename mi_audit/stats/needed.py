"""How much data would decide a claim, if what was observed is the truth."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy.special import betaincinv, logit

from mi_audit.stats.limits import least_groups

if TYPE_CHECKING:
    from mi_audit.stats.estimate import Estimate

_MOST = 1e7


@dataclass(frozen=True)
class Needed:
    """An amount of data: prompts and the groups that they come in."""

    n: int
    groups: int

    def __str__(self) -> str:
        return f"n = {self.n} in {self.groups} groups" if self.groups != self.n else f"n = {self.n}"


def needed(estimate: "Estimate", op: str, threshold: float) -> Needed | None:
    """The prompts and groups at which the bound that faces `threshold` would reach it, were the observed value the truth; groups keep their size.

    None where the value is the threshold, where more than ten million prompts would be needed, or where nothing can be decided for a reason that more of the
    same prompts may not mend; they never mend an interval that was widened for low precision. Planning for a given power is `size`.
    """
    above = estimate.value > threshold
    if estimate.value == threshold or estimate.unwidened is not None:
        return None
    bound = estimate.low if above else estimate.high
    ratio = max(_growth(estimate, bound, threshold), least_groups(estimate.quantity, estimate.n, estimate.groups) / estimate.groups)
    if ratio * estimate.n > _MOST or ratio <= 1.0:
        return None
    return Needed(n=math.ceil(estimate.n * ratio - 1e-9), groups=math.ceil(estimate.groups * ratio - 1e-9))


def _growth(estimate: "Estimate", bound: float, threshold: float) -> float:
    """The factor by which the data must grow."""
    if estimate.quantity in ("rate", "recall", "accuracy"):
        now, then = _binomial_n(estimate.value, bound, estimate.alpha), _binomial_n(estimate.value, threshold, estimate.alpha)
        return then / now
    if estimate.quantity == "auroc":
        if estimate.value in (0.0, 1.0):  # one over n, not one over its root
            return abs(bound - estimate.value) / abs(threshold - estimate.value)
        return float((logit(bound) - logit(estimate.value)) / (logit(threshold) - logit(estimate.value))) ** 2
    if estimate.quantity == "capability_change" and estimate.value == 0.0:
        return abs(bound / threshold)
    return ((bound - estimate.value) / (threshold - estimate.value)) ** 2


def _binomial_n(value: float, bound: float, alpha: float) -> float:
    """The number of independent trials at which the Clopper–Pearson bound of an observed share `value` is `bound`; by bisection."""
    share, edge = (value, bound) if bound > value else (1.0 - value, 1.0 - bound)
    least, most = 1e-3, _MOST * 10
    while most / least > 1 + 1e-9:
        n = math.sqrt(least * most)
        if share >= 1.0 or betaincinv(share * n + 1.0, (1.0 - share) * n, 1.0 - alpha) > edge:
            least = n
        else:
            most = n
    return most
