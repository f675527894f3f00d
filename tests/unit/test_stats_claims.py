"""Claims: what passes, what fails, and what can't be asked."""

import operator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from mi_audit.errors import ClaimComparisonError, InconclusiveError, StatisticsError
from mi_audit.stats.claim import Claim, claims_heard_by, decide, vacuous
from mi_audit.stats.controls import Baseline, Controls, Null
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.needed import Needed
from mi_audit.stats.rates import rate
from mi_audit.stats.verdict import Verdict

BEATEN = Null("shuffled labels", (0.5,) * 39, observed=0.9)
CONTROLS = Controls(nulls=(BEATEN,))


def estimate(quantity="rate", low=0.2, value=0.3, high=0.4, **more):
    return Estimate(quantity, value, low, high, alpha=0.025, n=200, n_positive=None, groups=40, method="made up", **more)


@pytest.mark.parametrize(
    ("op", "threshold", "verdict"),
    [
        (">=", 0.2, "PASS"),
        (">=", 0.2000001, "INCONCLUSIVE"),
        (">=", 0.4, "INCONCLUSIVE"),
        (">=", 0.4000001, "FAIL"),
        (">", 0.1999999, "PASS"),
        (">", 0.2, "INCONCLUSIVE"),
        (">", 0.4, "FAIL"),
        ("<=", 0.4, "PASS"),
        ("<=", 0.3999999, "INCONCLUSIVE"),
        ("<=", 0.2, "INCONCLUSIVE"),
        ("<=", 0.1999999, "FAIL"),
        ("<", 0.4000001, "PASS"),
        ("<", 0.4, "INCONCLUSIVE"),
        ("<", 0.2, "FAIL"),
    ],
)
def test_a_claim_is_decided_on_the_bound(op, threshold, verdict):
    assert decide(estimate(), op, threshold).verdict == verdict


def test_operators_make_the_claim_that_they_say():
    one = estimate()
    assert [(one >= 0.1).op, (one > 0.1).op, (one <= 0.1).op, (one < 0.1).op] == [">=", ">", "<=", "<"]
    assert [operator.le(0.1, one).op, (np.float64(0.1) <= one).op, (Fraction(1, 10) > one).op] == [">=", ">=", "<"]
    assert (one >= 0.1).text == "rate() >= 0.1"


def test_truth_of_a_claim():
    assert bool(estimate() <= 0.5) is True
    assert bool(estimate() <= 0.1) is False
    with pytest.raises(InconclusiveError, match=r"rate\(\) <= 0.35 is INCONCLUSIVE.*both sides of 0.35.*n = "):
        bool(estimate() <= 0.35)
    with pytest.raises(InconclusiveError):
        assert not (estimate() <= 0.35)


@pytest.mark.parametrize("threshold", [True, None, "0.5", float("nan"), float("inf"), 1j, estimate(), np.array([0.5]), np.bool_(True)])
@pytest.mark.parametrize("op", ["__ge__", "__gt__", "__le__", "__lt__"])
def test_comparing_with_what_is_no_threshold_is_an_error(op, threshold):
    with pytest.raises(ClaimComparisonError):
        getattr(estimate(), op)(threshold)


def test_equality_and_truth_of_an_estimate_are_errors():
    with pytest.raises(ClaimComparisonError):
        estimate() == 0.3  # noqa: B015
    with pytest.raises(ClaimComparisonError):
        estimate() != 0.3  # noqa: B015
    with pytest.raises(ClaimComparisonError):
        bool(estimate())
    with pytest.raises(ClaimComparisonError):
        np.float64(0.3) == estimate()  # noqa: B015
    assert len({estimate(), estimate()}) == 2


@pytest.mark.parametrize(
    ("quantity", "op", "threshold", "why"),
    [
        ("rate", "<=", 1.0, "no data could fail"),
        ("rate", "<", 1.5, "no data could fail"),
        ("auroc", ">=", 0.0, "no data could fail"),
        ("recall", ">", -1.0, "no data could fail"),
        ("rate", "<=", 0.0, "no data could pass"),
        ("rate", "<", 0.0, "no data could pass"),
        ("auroc", ">=", 1.0, "no data could pass"),
        ("accuracy", ">", 1.0, "no data could pass"),
    ],
)
def test_vacuous_claims_are_refused(quantity, op, threshold, why):
    assert why in vacuous(quantity, op, threshold)
    with pytest.raises(StatisticsError, match=why):
        decide(estimate(quantity), op, threshold)


def test_claims_about_unbounded_quantities_are_never_vacuous():
    assert vacuous("mean", ">=", 0.0) is None
    assert vacuous("effect_size", "<=", 7.0) is None


def test_undecided_reasons_overrule_the_bounds():
    for op in (">=", "<="):
        claim = decide(estimate(undecided=("9 groups",)), op, 0.9)
        assert claim.verdict is Verdict.INCONCLUSIVE
        assert claim.reasons == ("9 groups",)


@pytest.mark.parametrize("quantity", ["auroc", "recall", "accuracy", "mean_difference", "paired_difference", "effect_size"])
def test_a_discriminating_claim_passes_only_with_controls_that_passed(quantity):
    def verdict(controls, op=">=", threshold=0.1):
        return decide(estimate(quantity, controls=controls), op, threshold)

    assert verdict(CONTROLS).verdict is Verdict.PASS
    assert verdict(None).reasons == ("controls were switched off",)
    assert verdict(Controls(nulls=())).verdict is Verdict.INCONCLUSIVE
    lost = Controls(nulls=(BEATEN, Null("random directions", (0.95,) + (0.5,) * 39, observed=0.9)))
    assert verdict(lost).verdict is Verdict.INCONCLUSIVE
    assert "random directions" in verdict(lost).reasons[0] and "p = 0.0488" in verdict(lost).reasons[0]
    assert verdict(None, threshold=0.5).verdict is Verdict.FAIL
    assert verdict(None, op="<=", threshold=0.5).verdict is Verdict.PASS


@pytest.mark.parametrize(("quantity", "op", "threshold"), [("rate", ">=", 0.1), ("rate", "<=", 0.5), ("mean", ">=", 0.1)])
def test_a_claim_that_tells_no_classes_apart_needs_no_controls(quantity, op, threshold):
    assert decide(estimate(quantity), op, threshold).verdict is Verdict.PASS


def test_capping_lowers_a_pass_and_leaves_a_fail():
    assert (estimate() <= 0.5).capped("blind").verdict is Verdict.INCONCLUSIVE
    assert (estimate() <= 0.5).capped("blind").reasons == ("blind",)
    assert (estimate() <= 0.1).capped("blind").verdict is Verdict.FAIL


def test_every_comparison_is_heard_by_the_innermost_listener_only():
    outer: list[Claim] = []
    inner: list[Claim] = []
    with claims_heard_by(outer.append):
        first = estimate() <= 0.5
        with claims_heard_by(inner.append):
            second = estimate() <= 0.35  # its truth is never asked for
        third = estimate() >= 0.9
    estimate() <= 0.1  # noqa: B015
    assert outer == [first, third]
    assert inner == [second]


def test_rank_of_an_observation_in_its_null():
    null = Null("shuffled labels", (0.9, 0.8, *(0.1,) * 37), observed=0.8)
    assert (null.k, null.draws, null.p) == (2, 39, 3 / 40)
    assert not null.passed
    assert replace(null, observed=0.91).p == 1 / 40
    assert replace(null, observed=0.91).passed
    assert null.quantile(0.5) == 0.1


def test_too_few_draws_never_pass():
    null = Null("shuffled labels", (0.1,) * 38, observed=0.9)
    assert not null.passed
    assert "fewer than 39" in null.reason
    assert Null("shuffled labels", (0.1,) * 9, observed=0.9, alpha=0.1).passed
    with pytest.raises(StatisticsError, match="nan"):
        Null("shuffled labels", (float("nan"),) * 39, observed=0.9)


def test_baselines_are_reported_beside_the_nulls():
    beaten = Baseline("length", 0.6, 0.5, 0.7, difference=0.3, difference_low=0.2, difference_high=0.4)
    equal = replace(beaten, name="bag of words", difference_low=-0.1)
    assert Controls((BEATEN,), (beaten,)).above_baselines
    assert not Controls((BEATEN,), (beaten, equal)).above_baselines
    assert not Controls((BEATEN,)).above_baselines
    assert Controls((BEATEN,), (equal,)).passed


def test_an_estimate_reads_well():
    assert str(estimate("auroc", 0.8812, 0.9119, 0.9351)) == "AUROC 0.912 [0.881, 0.935] (n = 200, 40 groups)"
    assert str(rate(np.zeros(1000, dtype=bool), np.arange(1000))) == "rate 0.000 [0.000, 0.0037] (n = 1000)"


def test_what_would_decide_a_rate_without_events():
    claim = rate(np.zeros(100, dtype=bool), np.arange(100)) <= 0.01
    assert claim.needed == Needed(n=368, groups=368)
    assert (rate(np.zeros(367, dtype=bool), np.arange(367)) <= 0.01).verdict is Verdict.INCONCLUSIVE
    assert (rate(np.zeros(368, dtype=bool), np.arange(368)) <= 0.01).verdict is Verdict.PASS


def test_what_would_decide_is_unknown_at_the_threshold_itself_and_counts_the_least_groups():
    assert (estimate() <= 0.3).needed is None
    few = replace(estimate("mean", 0.0, 1.0, 2.0), groups=10, n=50, undecided=("10 groups",))
    assert (few >= -5.0).needed == Needed(n=100, groups=20)
