"""Planning: sizes that reach the power asked for."""

import numpy as np
import pytest
from scipy.stats import binom

from mi_audit.errors import StatisticsError
from mi_audit.stats.auroc import auroc
from mi_audit.stats.power import Needed, size
from mi_audit.stats.rates import rate


def test_the_size_for_a_rate_reaches_its_power_by_the_binomial_distribution():
    planned = size("rate", "<=", 0.05, expected=0.02, power=0.8)
    most = max(k for k in range(planned.n) if rate(np.arange(planned.n) < k, np.arange(planned.n)).high <= 0.05)
    assert binom.cdf(most, planned.n, 0.02) == pytest.approx(0.8, abs=0.05)
    assert planned.n == planned.groups


def test_the_size_for_an_auroc_reaches_its_power_on_other_data():
    planned = size("auroc", ">=", 0.7, expected=0.85, power=0.8, per_group=8, icc=0.1)
    assert planned.n == 8 * planned.groups
    rng = np.random.default_rng(77)
    codes, labels = np.repeat(np.arange(planned.groups), 8), np.tile([True, False], planned.n // 2)

    def passes():
        levels = 0.1**0.5 * rng.standard_normal(planned.groups)[codes] + 0.9**0.5 * rng.standard_normal(planned.n)
        return auroc(levels + 1.4657 * labels, labels, codes).low >= 0.7  # Phi(1.4657 / root 2) = 0.85

    assert np.mean([passes() for _ in range(400)]) == pytest.approx(0.8, abs=0.08)


def test_more_power_correlation_or_precision_needs_more_data():
    def groups(**changes):
        asked = {"op": ">=", "threshold": 0.0, "expected": 0.6, "power": 0.8, "per_group": 4, "icc": 0.0} | changes
        return size("mean", asked.pop("op"), asked.pop("threshold"), **asked).groups

    usual = groups()
    assert usual >= 20
    assert groups(expected=0.15) > usual
    assert groups(expected=0.15, power=0.95) > groups(expected=0.15)
    assert groups(expected=0.15, icc=0.5) > groups(expected=0.15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: size("auroc", ">=", 0.9, expected=0.85), "can't be expected to pass"),
        (lambda: size("auroc", ">=", 0.9, expected=1.0), "expected"),
        (lambda: size("rate", "<=", 1.0, expected=0.5), "no data could fail"),
        (lambda: size("rate", "<=", 0.1, expected=0.05, power=1.0), "power"),
        (lambda: size("rate", "<=", 0.1, expected=0.05, per_group=0), "per_group"),
        (lambda: size("rate", "<=", 0.1, expected=0.05, icc=1.0, per_group=2), "icc"),
        (lambda: size("slopes", "<=", 0.1, expected=0.05), "no quantity 'slopes'"),
        (lambda: size("smallest_step", ">", 0.0, expected=0.5), "plan for a 'change'"),
        (lambda: size("paired_difference", ">=", 0.1, expected=0.5, per_group=3), "even"),
        (lambda: size("rate", "<=", 0.5, expected=0.4999), "too near the threshold"),
    ],
)
def test_plans_that_make_no_sense_are_refused(call, message):
    with pytest.raises(StatisticsError, match=message):
        call()


def test_needed_reads_well():
    assert str(Needed(368, 368)) == "n = 368"
    assert str(Needed(320, 40)) == "n = 320 in 40 groups"
