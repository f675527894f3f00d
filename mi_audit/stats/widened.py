"""The interval of an estimate whose scores are known only up to the rounding of low precision."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from mi_audit.errors import StatisticsError
from mi_audit.stats.checks import Bools, Floats
from mi_audit.stats.claim import DISCRIMINATING
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.spread import Spread, Unwidened

METHOD: Final = "widened for low precision"

Again = Callable[[Floats, float], Estimate]
"""Estimates the quantity on other scores [n]; the number is `more_spread` of an effect size, 0 for any other quantity."""


def widened(plain: Estimate, again: Again, values: Floats, labels: Bools | None, spread: Spread) -> Estimate:
    """`plain` with an interval that holds for all scores within `spread.delta` of `values` [n]; its value and its controls stay.

    Every quantity grows with the scores of its positives, and falls with those of its negatives (a rate, or a mean, grows with all scores). So all scores
    shifted by delta against it give a quantity that no scores within delta undercut, in the population as in the sample, and its lower bound is one of theirs
    with the same probability of error; likewise upwards. For a rate, a recall or an accuracy this is a shift of the threshold; for a mean, of the bound by
    delta; for a difference, by 2 delta. The standard deviation under an effect size moves by delta at most as well (it is a seminorm), so that its bounds are
    the outermost of those with delta added to it and taken off; where that leaves none, nothing can be decided.

    Args:
        plain: the estimate on `values`, the scores taken as exact.
        again: the same estimate on other scores.
        values: the scores.
        labels: whether each is of a positive; only a rate and a mean do without.
        spread: how far they are from exact.
    """
    if spread.delta == 0.0:
        return plain
    towards = np.ones(len(values))
    if plain.quantity in DISCRIMINATING and labels is not None:
        towards[~labels] = -1.0
    inner = (-spread.delta, spread.delta) if plain.quantity == "effect_size" else (0.0,)
    try:
        moved = [again(values + way * spread.delta * towards, more) for way in (-1.0, 1.0) for more in inner]
    except StatisticsError:
        too_coarse = f"in {spread.dtype} scores differ from float32 by up to {spread.delta:.3g}, more than they vary within the classes"
        return replace(plain, undecided=(*plain.undecided, f"{too_coarse}; run with --audit-dtype float32 to decide"))
    return replace(
        plain,
        low=min(plain.low, *(each.low for each in moved)),
        high=max(plain.high, *(each.high for each in moved)),
        method=f"{plain.method}; {METHOD}",
        unwidened=Unwidened(plain.low, plain.high, spread),
    )
