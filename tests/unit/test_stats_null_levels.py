"""Claims of effects: which need their null, and what a comparison with the null claims."""

import operator
from dataclasses import replace

import numpy as np
import pytest

from mi_audit.errors import ClaimComparisonError
from mi_audit.stats.claim import by_bounds, claims_heard_by, decide, needs_null
from mi_audit.stats.controls import Controls, Null
from mi_audit.stats.dose import Dose
from mi_audit.stats.estimate import Estimate, NullLevel
from mi_audit.stats.verdict import Verdict


def effect(quantity="slope", low=0.2, value=0.3, high=0.4, **more):
    return Estimate(quantity, value, low, high, alpha=0.025, n=200, n_positive=None, groups=40, method="made up", **more)


@pytest.mark.parametrize("quantity", ["slope", "change", "smallest_step", "sign_reversal"])
@pytest.mark.parametrize(
    ("op", "threshold", "needed"),
    [
        (">", 0.0, True),
        (">=", -0.0, True),
        (">=", 0.1, True),
        (">=", -0.1, False),
        (">", -1e-9, False),
        ("<", 0.0, True),
        ("<=", -0.0, True),
        ("<=", -0.1, True),
        ("<=", 0.1, False),
        ("<", 1e-9, False),
    ],
)
def test_an_effect_passes_only_beyond_its_null_on_whichever_side(quantity, op, threshold, needed):
    sign = 1.0 if op.startswith(">") else -1.0
    bounds = sorted((threshold + sign * 0.1, threshold + sign * 0.3))

    def verdict(controls):
        return decide(effect(quantity, bounds[0], threshold + sign * 0.2, bounds[1], controls=controls), op, threshold)

    beyond = Null("shuffled labels", tuple(np.linspace(-1, 1, 39)), observed=sign * 2.0)
    within, opposite = replace(beyond, observed=0.0), replace(beyond, observed=-sign * 2.0)
    assert needs_null(quantity, op, threshold) is needed
    assert verdict(Controls((beyond,))).verdict is Verdict.PASS
    for controls in (None, Controls(()), Controls((within,)), Controls((opposite,))):
        assert verdict(controls).verdict is (Verdict.INCONCLUSIVE if needed else Verdict.PASS)
    if needed:
        assert "20 of 39 draws reach 0" in verdict(Controls((within,))).reasons[0]
        assert "39 of 39 draws reach" in verdict(Controls((opposite,))).reasons[0]


def test_controls_face_the_side_claimed():
    controls = Controls((Null("shuffled labels", (0.1, 0.2, 0.3), observed=0.2), Null("random directions", (0.2, 0.2, 0.3), observed=0.2, decides=False)))
    assert [null.k for null in controls.facing(">=").nulls] == [2, 3] == [null.k for null in controls.nulls]
    assert [null.k for null in controls.facing("<").nulls] == [2, 2]
    assert controls.facing("<=").facing(">") == controls
    assert [null.downward for null in decide(effect(controls=controls), "<", -1.0).controls.nulls] == [True, True]
    assert decide(effect("auroc", controls=controls), "<", 0.9).controls is controls


SPEC = "the slope of this sweep"
BEATEN = Controls((Null("shuffled labels", (0.0,) * 39, observed=0.3),))


def level(low=0.1, high=0.3, quantity="slope", controls=BEATEN):
    return NullLevel(effect(quantity, low, (low + high) / 2, high, excess=True, controls=controls, spec="its excess"), SPEC, quantity)


def test_an_estimate_compared_with_its_null_claims_that_the_excess_is_on_this_side_of_0():
    one, null = effect(spec=SPEC), level()
    heard = []
    with claims_heard_by(heard.append):
        claim = one > null
    assert heard == [claim]
    assert (claim.estimate, claim.op, claim.threshold, claim.verdict) == (null.over, ">", 0.0, Verdict.PASS)
    assert claim.text == "slope() > null.slope()" and claim.estimate.spec == "its excess"
    assert [(op(one, null).op, op(one, null).verdict) for op in (operator.ge, operator.le, operator.lt)] == [(">=", "PASS"), ("<=", "FAIL"), ("<", "FAIL")]
    assert [(null < one).text, (null >= one).text] == ["slope() > null.slope()", "slope() <= null.slope()"]
    assert (one > level(low=-0.1)).verdict is Verdict.INCONCLUSIVE
    assert (one > level(controls=None)).reasons == ("controls were switched off",)
    assert (one > level(controls=Controls((Null("shuffled labels", (0.5,) * 39, observed=0.3),)))).verdict is Verdict.INCONCLUSIVE
    below = Controls((Null("shuffled labels", (0.5,) * 39, observed=0.3),))
    assert (one < level(-0.3, -0.1, controls=below)).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda one, null: replace(one, spec="of another sweep") > null, "null of another sweep"),
        (lambda one, null: replace(one, spec=None) > NullLevel(null.over, None, null.quantity), "null of another sweep"),
        (lambda one, null: effect("change", spec=SPEC) > null, r"change\(\) is compared with null.slope\(\)"),
        (lambda one, null: bool(null), "only for an estimate"),
        (lambda one, null: float(null), "only for an estimate"),
        (lambda one, null: null > 0.1, "only for an estimate"),
        (lambda one, null: operator.gt(0.1, null), "only for an estimate"),
        (lambda one, null: np.float64(0.1) >= null, "only for an estimate"),
        (lambda one, null: null > level(), "only for an estimate"),
        (lambda one, null: null == 0.1, "only for an estimate"),
        (lambda one, null: null != null, "only for an estimate"),
        (lambda one, null: null + 0.1, "only for an estimate"),
        (lambda one, null: 2 * null, "only for an estimate"),
        (lambda one, null: -null, "only for an estimate"),
        (lambda one, null: one == null, "is no claim"),
        (lambda one, null: null == one, "only for an estimate"),
    ],
)
def test_a_null_is_for_its_own_estimate_only(use, message):
    with pytest.raises(ClaimComparisonError, match=message):
        use(effect(spec=SPEC), level())


def compared(rng, real):
    """A sweep of 96 prompts in 24 groups with 39 null draws; each direction has its own effect, which each prompt, and its group, shows more or less."""
    groups, strengths = np.repeat(np.arange(24), 4), (-2.0, -1.0, 1.0, 2.0)
    sensitivity = 1.0 + 0.4 * rng.standard_normal(24)[groups] + 0.4 * rng.standard_normal(96)
    effects = np.append(real, rng.standard_normal(39))
    values = effects[:, None, None] * np.outer(strengths, sensitivity) + 0.3 * rng.standard_normal((40, 4, 96))
    dose = Dose(values[0], 0.3 * rng.standard_normal(96), strengths, groups, True)
    estimate, excess = replace(dose.estimate("slope"), spec=SPEC), dose.excess("slope", values[1:])
    controls = Controls((dose.null("shuffled labels", "slope", values[1:]),))
    claim = estimate > NullLevel(replace(excess, controls=controls), SPEC, excess.quantity)
    return claim.verdict is Verdict.PASS, by_bounds(excess, ">", 0.0) is Verdict.PASS


def test_a_direction_like_any_other_beats_the_null_no_more_often_than_alpha():
    """Directions differ, so that the interval alone, which knows the prompts' differences only, would pass nearly half of those that mean nothing."""
    rng = np.random.default_rng(20240611)
    passed, by_interval = np.mean([compared(rng, rng.standard_normal()) for _ in range(2000)], axis=0)
    assert 0.005 < passed <= 0.025 + 2 * (0.025 * 0.975 / 2000) ** 0.5
    assert by_interval > 0.3


def test_a_direction_that_does_more_than_any_other_beats_the_null():
    rng = np.random.default_rng(5)
    assert np.mean([compared(rng, 5.0)[0] for _ in range(200)]) > 0.97
