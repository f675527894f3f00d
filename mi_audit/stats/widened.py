"""The interval of an estimate whose scores are known only up to the rounding of low precision."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from mi_audit.errors import StatisticsError
from mi_audit.stats.checks import Bools, Floats
from mi_audit.stats.claim import BOUNDED, DISCRIMINATING
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.spread import Spread, Unwidened

METHOD: Final = "widened for low precision"
_BEYOND: Final = float(np.finfo(np.float64).max)

Again = Callable[[Floats, float, float], Estimate]
"""Estimates the quantity on other scores [n], at another alpha; the number between is `more_spread` of an effect size, 0 for any other quantity."""


def widened(plain: Estimate, again: Again, values: Floats, labels: Bools | None, spread: Spread) -> Estimate:
    """`plain` with an interval that holds for all scores within `spread.delta` of `values` [n]; its value and its controls stay.

    Every quantity grows with the scores of its positives, and falls with those of its negatives (a rate, or a mean, grows with all scores). So all scores
    shifted by delta against it give a quantity that no scores within delta undercut, in the population as in the sample, and its lower bound is one of theirs
    with the same probability of error; likewise upwards. For a rate, a recall or an accuracy this is a shift of the threshold; for a mean, of the bound by
    delta; for a difference, by 2 delta. The standard deviation under an effect size moves by delta at most as well (it is a seminorm), so that its bounds are
    the outermost of those with delta added to it and taken off; where that leaves none, nothing can be decided.

    Where delta was measured on a sample, `spread.others` prompts may differ by anything. A share or an AUROC moves with each of them by at most one over the
    prompts that it averages over (of an AUROC, the rarer class). Its bounds move by as much, and at least to where they are once the scores that speak most
    for it are turned against it. No other quantity has a bound then, and nothing can be decided.

    Args:
        plain: the estimate on `values`, the scores taken as exact.
        again: the same estimate on other scores.
        values: the scores.
        labels: whether each is of a positive; only a rate and a mean do without.
        spread: how far they are from exact.
    """
    others, level = spread.others(plain.alpha), spread.level(plain.alpha)
    if spread.delta == 0.0 and not others:
        return plain
    towards = np.ones(len(values))
    if plain.quantity in DISCRIMINATING and labels is not None:
        towards[~labels] = -1.0
    inner = (-spread.delta, spread.delta) if plain.quantity == "effect_size" else (0.0,)
    shifted = {way: values + way * spread.delta * towards for way in (-1.0, 1.0)}
    try:
        moved = [again(scores, more, level) for scores in shifted.values() for more in inner]
    except StatisticsError:
        return replace(plain, undecided=(*plain.undecided, f"{spread}, more than they vary within the classes; run with --audit-dtype float32 to decide"))
    low, high = min(each.low for each in moved), max(each.high for each in moved)
    reasons = [reason for each in (plain, *moved) for reason in each.undecided]
    if others and plain.quantity in BOUNDED:
        share = others / _averaged(plain)
        turned = [again(against, 0.0, level) for way, scores in shifted.items() for against in _turned(scores, way * towards, others)]
        low, high = max(0.0, min(low - share, *(each.low for each in turned))), min(1.0, max(high + share, *(each.high for each in turned)))
    elif others:
        reasons.append(f"{spread}; {others} others may differ by anything, and a mean with them; run with --audit-dtype float32 to decide")
    return replace(
        plain,
        low=min(plain.low, low),
        high=max(plain.high, high),
        method=f"{plain.method}; {METHOD}",
        undecided=tuple(dict.fromkeys(reasons)),
        unwidened=Unwidened(plain.low, plain.high, spread, others),
    )


def _averaged(plain: Estimate) -> int:
    """The prompts that the quantity averages over; of an AUROC those of the rarer class."""
    return plain.n if plain.quantity != "auroc" or plain.n_positive is None else min(plain.n_positive, plain.n - plain.n_positive)


def _turned(scores: Floats, towards: Floats, others: int) -> Iterator[Floats]:
    """The scores with `others` of one class as far as can be in the direction `towards` [n], those that are farthest from there; for each class."""
    for way in np.unique(towards):
        rows = np.flatnonzero(towards == way)
        against = scores.copy()
        against[rows[np.argsort(way * scores[rows], kind="stable")[:others]]] = way * _BEYOND
        yield against
