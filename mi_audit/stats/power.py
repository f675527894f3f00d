"""Planning: how many prompts, in how many groups, a claim needs to pass with a given power."""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.random import Generator

from mi_audit.errors import StatisticsError
from mi_audit.stats.auroc import auroc
from mi_audit.stats.checks import Bools, Codes, Floats, checked_alpha, checked_number
from mi_audit.stats.claim import BOUNDED, QUANTITIES, SIDE_EFFECTS, by_bounds, checked_threshold, vacuous
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.limits import LEAST_GROUPS
from mi_audit.stats.means import effect_size, mean, mean_difference, paired_difference
from mi_audit.stats.needed import Needed, needed
from mi_audit.stats.rates import rate
from mi_audit.stats.side_effects import side_effect
from mi_audit.stats.simulate import beta_binomial_hits, binormal_scores, group_levels
from mi_audit.stats.verdict import Verdict

__all__ = ["Needed", "needed", "size"]

_MEANS: Final = SIDE_EFFECTS - {"capability_change"} | {"mean", "slope", "change"}  # of one number per prompt
_LEAST_OF: Final = frozenset({"smallest_step", "sign_reversal"})  # of several changes: each is planned for
_DRAWS: Final = 600
_MOST_ROWS: Final = 200_000
_SEED: Final = 20240607


def size(
    quantity: str,
    op: str,
    threshold: float,
    *,
    expected: float,
    power: float = 0.8,
    alpha: float = 0.025,
    per_group: int = 1,
    icc: float = 0.1,
    prevalence: float = 0.5,
    spread: float = 1.0,
) -> Needed:
    """The fewest groups of `per_group` prompts with which `quantity op threshold` passes with probability `power` if its true value is `expected`.

    Found by simulation: data sets are drawn and decided by the very rule that will decide the claim (600 a step, seeded, so the power is met within some 3
    points). Scores and values are normal with standard deviation `spread` in each class, outcomes beta-binomial; two prompts of a group correlate by `icc`,
    which means nothing for groups of one; the share `prevalence` of the prompts is positive, evenly over the groups. For a recall the prompts are the
    positives; for a paired difference they come as pairs in a row and `per_group` is even. Of a change of capability a question is lost, or gained, with the
    expected probability, and `per_group` is 1. The least of several changes (a smallest step, a sign reversal)
    has no plan of its own: plan for a change as large. Controls are taken to pass.

    Raises:
        StatisticsError: a number out of its range, a claim that the expected value does not fulfil, or more than 200 000 prompts needed.
    """
    threshold = checked_threshold(quantity, op, threshold)
    if empty := vacuous(quantity, op, threshold):
        raise StatisticsError(empty)
    alpha = checked_alpha(alpha)
    checked_number("power", power, 0.0, 1.0)
    if isinstance(per_group, bool) or not isinstance(per_group, int) or per_group < 1:
        raise StatisticsError(f"per_group must be a whole number from 1 up, got {per_group!r}.")
    draw = _model(quantity, expected, checked_number("icc", icc, -1e-9, 1.0) if per_group > 1 else 0.0, prevalence, spread, per_group, alpha)
    upward = op in (">=", ">")
    if (expected <= threshold) if upward else (expected >= threshold):
        raise StatisticsError(f"{quantity}() {op} {threshold:g} can't be expected to pass where the true value is {expected:g}.")

    def passing(groups: int) -> float:
        rng = np.random.default_rng((_SEED, groups))
        codes = np.repeat(np.arange(groups), per_group)
        return sum(by_bounds(draw(rng, codes), op, threshold) is Verdict.PASS for _ in range(_DRAWS)) / _DRAWS

    groups = _least(passing, power, LEAST_GROUPS, _MOST_ROWS // per_group)
    return Needed(n=groups * per_group, groups=groups)


def _model(
    quantity: str, expected: float, icc: float, prevalence: float, spread: float, per_group: int, alpha: float
) -> Callable[[Generator, Codes], Estimate]:
    """A function that draws a data set whose `quantity` is `expected`, on groups numbered [n], and estimates it."""
    share = checked_number("prevalence", prevalence, 0.0, 1.0)
    width = checked_number("spread", spread, 0.0, np.inf)
    if quantity in BOUNDED:
        checked_number("expected", expected, 0.0, 1.0)
    if quantity == "paired_difference" and per_group % 2:
        raise StatisticsError(f"Pairs lie within groups: per_group must be even for a paired difference, got {per_group}.")
    if quantity == "capability_change":
        checked_number("expected", expected, -1.0, 1.0)
        if per_group > 1:
            raise StatisticsError(f"Of each group one question is taken: per_group must be 1 for a change of capability, got {per_group}.")
    scale = 1.0 if quantity == "effect_size" else width

    def labels(codes: Codes) -> Bools:
        rows = np.arange(len(codes))
        return np.asarray(np.floor((rows + 1) * share) > np.floor(rows * share))

    def values(rng: Generator, codes: Codes, flags: Bools) -> Floats:
        return scale * group_levels(rng, codes, icc) + expected * flags

    def draw(rng: Generator, codes: Codes) -> Estimate:
        match quantity:
            case "auroc":
                return auroc(binormal_scores(rng, labels(codes), codes, auroc=expected, icc=icc), labels(codes), codes, alpha=alpha)
            case "rate" | "recall" | "accuracy":
                return rate(beta_binomial_hits(rng, codes, rate=expected, icc=icc), codes, alpha=alpha, quantity=quantity)
            case "capability_change":
                turned = np.sign(expected) * (rng.random(len(codes)) < abs(expected))
                return side_effect("capability_change", turned, codes, alpha=alpha)
            case _ if quantity in _MEANS:
                return mean(values(rng, codes, np.ones(len(codes), dtype=np.bool_)), codes, alpha=alpha, quantity=quantity)
            case "mean_difference":
                return mean_difference(values(rng, codes, labels(codes)), labels(codes), codes, alpha=alpha)
            case "effect_size":
                return effect_size(values(rng, codes, labels(codes)), labels(codes), codes, alpha=alpha)
            case "paired_difference":
                rows = np.arange(len(codes))
                return paired_difference(values(rng, codes, rows % 2 == 0), rows % 2 == 0, rows // 2, codes, alpha=alpha)
            case _ if quantity in _LEAST_OF:
                raise StatisticsError(f"{quantity}() is the least of several changes: plan for a 'change' as large as the least of them.")
            case _:
                raise StatisticsError(f"There is no quantity {quantity!r}: use one of {', '.join(sorted(QUANTITIES - _LEAST_OF))}.")

    return draw


def _least(passing: Callable[[int], float], power: float, least: int, most: int) -> int:
    """The fewest groups from `least` up that pass with `power`, to 3 %.

    Raises:
        StatisticsError: `most` groups are not enough.
    """
    short, enough = least - 1, least
    while passing(enough) < power:
        short, enough = enough, math.ceil(enough * 1.6)
        if enough > most:
            raise StatisticsError(f"More than {most} groups would be needed: the expected value is too near the threshold to be told apart from it.")
    while enough - short > max(1, enough // 33):
        middle = (enough + short) // 2
        if passing(middle) < power:
            short = middle
        else:
            enough = middle
    return enough
