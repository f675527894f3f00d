"""What an intervention does beside what it is meant to do, on prompts that it should leave alone."""

from dataclasses import replace
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike

from mi_audit.errors import StatisticsError
from mi_audit.stats.checks import Floats, checked_alpha, checked_clusters, checked_values
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.limits import unvalidated
from mi_audit.stats.means import mean
from mi_audit.stats.rates import clopper_pearson

SideEffectQuantity = Literal["kl", "loss_change", "repetition_change", "capability_change"]

_ROUNDING: Final = 1e-4  # nats per token; a divergence computed in low precision may fall below 0 by as much


def side_effect(quantity: SideEffectQuantity, values: ArrayLike, groups: ArrayLike, *, alpha: float = 0.025) -> Estimate:
    """The mean over prompts of `values` [n].

    - "kl": divergence of the next-token distribution from that without the intervention, nats per token, never negative;
    - "loss_change": change of the loss, nats per token;
    - "repetition_change": change of the share of repeated tokens;
    - "capability_change": 1 for a question that is answered right only with the intervention, −1 for one that is right only without, 0 for the rest; a tie is
      half right. Where each question is a group of its own and none is a tie, it is the share gained less the share lost, each within its
      Clopper–Pearson interval (1934), alpha
      split evenly between them: valid at any n, so an intervention that changes no answer can be told to do no harm.

    Raises:
        StatisticsError: wrong shapes or types, a value that is not finite or not of the quantity, or fewer than two groups.
    """
    floats = checked_values(quantity, values)
    if quantity == "capability_change":
        if np.abs(floats).max() > 1.0:
            raise StatisticsError(f"A question is answered right or wrong, so its change is between -1 and 1, got {floats[np.argmax(np.abs(floats))]:g}.")
        clusters = checked_clusters(groups, len(floats))
        if clusters.count == len(floats) > 1 and np.isin(floats, (-1.0, 0.0, 1.0)).all():
            return _of_answers(floats, checked_alpha(alpha))
    estimate = mean(floats, groups, alpha=alpha, quantity=quantity)
    if quantity != "kl":
        return estimate
    if floats.min() < -_ROUNDING:
        raise StatisticsError(f"A KL divergence is never negative, got {floats.min():.3g} nats per token: compute it from log-probabilities in float32.")
    return replace(estimate, low=max(0.0, estimate.low))


def _of_answers(changes: Floats, alpha: float) -> Estimate:
    """Of `changes` [n] of independent questions."""
    n = len(changes)
    (least_lost, most_lost), (least_gained, most_gained) = (clopper_pearson(float((way * changes > 0).mean()), n, alpha / 2.0) for way in (-1.0, 1.0))
    return Estimate(
        quantity="capability_change",
        value=float(changes.mean()),
        low=least_gained - most_lost,
        high=most_gained - least_lost,
        alpha=alpha,
        n=n,
        n_positive=None,
        groups=n,
        method="Clopper–Pearson on the shares lost and gained, alpha split by Bonferroni",
        undecided=unvalidated("capability_change", n, n, alpha),
    )
