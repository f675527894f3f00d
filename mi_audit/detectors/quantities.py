"""From a reading to an estimate, and the same quantity on every draw of a null."""

from dataclasses import replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from mi_audit.detectors.controls import SHUFFLED, shuffle, stream
from mi_audit.detectors.readings import BASELINE, NULL, Arm, ReadingData
from mi_audit.errors import StatisticsError
from mi_audit.plan.measurements import DISCRIMINATES, EstimateSpec, Quantity
from mi_audit.stats.auroc import auroc, auroc_difference, auroc_value
from mi_audit.stats.checks import Bools, Floats
from mi_audit.stats.controls import Baseline, Controls, Null
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.means import effect_size, mean, mean_difference, paired_difference
from mi_audit.stats.rates import rate
from mi_audit.stats.spread import Spread
from mi_audit.stats.widened import widened

Names = NDArray[np.str_]

_Value = TypeVar("_Value")
_TIE: Final = 1e-9


def measure(
    quantity: Quantity,
    values: Floats,
    threshold: float | None,
    labels: Bools | None,
    groups: Names,
    pairs: Names | None,
    alpha: float,
    more_spread: float = 0.0,
) -> Estimate:
    """The estimate of a quantity on scores [n]; a detector fires strictly above its threshold, and recall is a rate over the positives alone.

    `more_spread` is for the effect size alone.

    Raises:
        StatisticsError: the quantity is undefined on these data.
        ValueError: the quantity needs a threshold, labels or pairs that are not given.
    """
    if quantity == "mean":
        return mean(values, groups, alpha=alpha)
    if quantity == "rate":
        return rate(values > _given(threshold, "a threshold"), groups, alpha=alpha)
    flags = _given(labels, "labels")
    match quantity:
        case "auroc":
            return auroc(values, flags, groups, alpha=alpha)
        case "recall":
            return rate(values[flags] > _given(threshold, "a threshold"), groups[flags], alpha=alpha, quantity="recall")
        case "accuracy":
            return rate((values > _given(threshold, "a threshold")) == flags, groups, alpha=alpha, quantity="accuracy")
        case "mean_difference":
            return mean_difference(values, flags, groups, alpha=alpha)
        case "paired_difference":
            return paired_difference(values, flags, _given(pairs, "pairs"), groups, alpha=alpha)
        case "effect_size":
            return effect_size(values, flags, groups, alpha=alpha, more_spread=more_spread)


def estimate_of(spec: EstimateSpec, reading: ReadingData, alpha: float, spread: Spread | None) -> Estimate:
    """A quantity of a reading with its controls, widened where the reading's scores are known only up to a spread.

    Raises:
        StatisticsError: the quantity is undefined on these data.
        ValueError: the quantity needs a threshold, labels or pairs that the reading does not have.
    """
    labels, groups = reading.labels, reading.groups
    pairs = reading.pairs(spec.pairs) if spec.pairs else None

    def again(values: Floats, more_spread: float, level: float) -> Estimate:
        return measure(spec.quantity, values, reading.threshold, labels, groups, pairs, level, more_spread)

    plain = again(reading.values, 0.0, alpha)
    estimate = plain if spread is None else widened(plain, again, reading.values, labels, spread)
    of = f"{spec.reading.detector.name} on {reading.suite.name}"
    return replace(estimate, of=of, spec=spec, controls=controls_of(spec, plain, reading, alpha))


def controls_of(spec: EstimateSpec, estimate: Estimate, reading: ReadingData, alpha: float) -> Controls | None:
    """The controls of a quantity that tells classes apart; None for any other, and where they were switched off."""
    if spec.quantity not in DISCRIMINATES or not spec.reading.controls:
        return None
    arms = reading.of_kind(NULL)
    decisive = {arm.name for arm in arms if arm.labels is not None} or {arm.name for arm in arms}
    nulls = tuple(Null(arm.name.removeprefix(NULL), null_statistics(spec, estimate, reading, arm), estimate.value, alpha, arm.name in decisive) for arm in arms)
    shuffled = next((null for null in nulls if null.name == SHUFFLED), None)
    selectivity = estimate.value - float(np.mean(shuffled.statistics)) if shuffled else None
    if spec.quantity != "auroc":  # what sees no internals has scores of its own scale and no threshold: only ranks can be held against the detector's
        return Controls(nulls, (), selectivity)
    baselines = tuple(found for arm in reading.of_kind(BASELINE) if (found := _baseline(reading, arm, alpha)) is not None)
    return Controls(nulls, baselines, selectivity)


def null_statistics(spec: EstimateSpec, estimate: Estimate, reading: ReadingData, arm: Arm) -> tuple[float, ...]:
    """The estimate's statistic on each draw: same prompts, the draw's own scores, threshold and, where it shuffles them, labels.

    A paired difference is shuffled by pair, with labels drawn here from a stream of the reading's digest: a shuffle within groups could break a pair.
    A draw within rounding of what was observed is a tie with it: where few relabellings exist some draws are the detector itself, but for rounding.
    """
    labels, groups = reading.labels, reading.groups
    pairs = reading.pairs(spec.pairs) if spec.pairs else None
    thresholds = [None] * len(arm.values) if arm.thresholds is None else [float(threshold) for threshold in arm.thresholds]
    own = arm.labels
    if own is not None and pairs is not None:
        own = shuffle(_given(labels, "labels"), tuple(pairs.tolist()), len(arm.values), stream(0, SHUFFLED, spec.digest))
    each = zip(arm.values, thresholds, [labels] * len(arm.values) if own is None else own, strict=True)
    if spec.quantity == "auroc":
        statistics = np.array([auroc_value(values, _given(flags, "labels")) for values, _, flags in each])
    else:
        statistics = np.array([measure(spec.quantity, values, threshold, flags, groups, pairs, estimate.alpha).value for values, threshold, flags in each])
    statistics[np.isclose(statistics, estimate.value, rtol=_TIE, atol=0)] = estimate.value
    return tuple(statistics.tolist())


def _baseline(reading: ReadingData, arm: Arm, alpha: float) -> Baseline | None:
    """A baseline's AUROC beside the detector's; None where there are too few groups to compare the two."""
    labels, groups, (scores,) = _given(reading.labels, "labels"), reading.groups, arm.values
    try:
        alone = auroc(scores, labels, groups, alpha=alpha)
        paired = auroc_difference(reading.values, scores, labels, groups, alpha=alpha)
    except StatisticsError:
        return None
    return Baseline(arm.name.removeprefix(BASELINE), alone.value, alone.low, alone.high, paired.value, paired.low, paired.high)


def _given(value: _Value | None, what: str) -> _Value:
    if value is None:
        raise ValueError(f"the quantity needs {what}, which the reading does not have")
    return value
