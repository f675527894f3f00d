"""What an intervention does beside what it is meant to do, on prompts that it should leave alone."""

from dataclasses import replace
from typing import Final, Literal

from numpy.typing import ArrayLike

from mi_audit.errors import StatisticsError
from mi_audit.stats.checks import checked_values
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.means import mean

SideEffectQuantity = Literal["kl", "loss_change", "repetition_change", "capability_change"]

_ROUNDING: Final = 1e-4  # nats per token; a divergence computed in low precision may fall below 0 by as much


def side_effect(quantity: SideEffectQuantity, values: ArrayLike, groups: ArrayLike, *, alpha: float = 0.025) -> Estimate:
    """The mean over prompts of `values` [n].

    - "kl": divergence of the next-token distribution from that without the intervention, nats per token, never negative;
    - "loss_change": change of the loss, nats per token;
    - "repetition_change", "capability_change": changes of the share of repeated tokens, and of the score on a task.

    Raises:
        StatisticsError: wrong shapes or types, a value that is not finite, a divergence below 0, or fewer than two groups.
    """
    floats = checked_values(quantity, values)
    estimate = mean(floats, groups, alpha=alpha, quantity=quantity)
    if quantity != "kl":
        return estimate
    if floats.min() < -_ROUNDING:
        raise StatisticsError(f"A KL divergence is never negative, got {floats.min():.3g} nats per token: compute it from log-probabilities in float32.")
    return replace(estimate, low=max(0.0, estimate.low))
