"""Sweeps of strengths: their quantities against closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from mi_audit.errors import StatisticsError
from mi_audit.stats.claim import decide, vacuous
from mi_audit.stats.dose import Dose, contrasts_of, saturation, statistic_of
from mi_audit.stats.limits import MOST_PARTS
from mi_audit.stats.means import mean
from mi_audit.stats.power import size
from mi_audit.stats.side_effects import side_effect
from mi_audit.stats.verdict import Verdict

STRENGTHS = (-2.0, -0.5, 1.0, 4.0)
QUANTITIES = (("slope", None), ("change", 1.0), ("smallest_step", None), ("sign_reversal", None))
GROUPS = np.repeat([f"template {number:02d}" for number in range(25)], 4)


def sweep(seed=0, *, origin=True, strengths=STRENGTHS, groups=GROUPS, rise=0.7, draws=None):
    """Effects that rise by `rise` a unit of strength, with a sensitivity of each prompt; `draws` of a null that has none."""
    rng, n = np.random.default_rng(seed), len(groups)
    unsteered = 3.0 + rng.standard_normal(n)
    sensitivity = 1.0 + 0.3 * rng.standard_normal(n)
    values = unsteered + rise * np.outer(strengths, sensitivity) + rng.standard_normal((len(strengths), n))
    dose = Dose(values, unsteered, strengths, groups, origin)
    return dose if draws is None else (dose, unsteered + rng.standard_normal((draws, len(strengths), n)))


def same(one, other):
    return [one.value, one.low, one.high] == pytest.approx([other.value, other.low, other.high], rel=1e-12)


@pytest.mark.parametrize("origin", [True, False])
def test_the_slope_is_the_mean_of_least_squares_slopes(origin):
    dose = sweep(origin=origin)
    x, y = (np.append(STRENGTHS, 0.0), np.vstack([dose.values, dose.unsteered])) if origin else (STRENGTHS, dose.values)
    slopes = np.array([stats.linregress(x, prompt).slope for prompt in y.T])
    estimate = dose.estimate("slope", alpha=0.05)
    assert same(estimate, mean(slopes, GROUPS, alpha=0.05))
    assert (estimate.quantity, estimate.alpha, estimate.n, estimate.groups, estimate.undecided) == ("slope", 0.05, 100, 25, ())
    clustered = sm.OLS(slopes, np.ones(100)).fit(cov_type="cluster", cov_kwds={"groups": np.repeat(np.arange(25), 4)})
    assert 1.711 < (estimate.high - estimate.low) / 2 / clustered.bse[0] < 2.1  # t with 24 degrees of freedom, and some more for skewness


def test_a_change_is_paired_by_prompt():
    dose = sweep()
    assert same(dose.estimate("change", -0.5), mean(dose.values[1] - dose.unsteered, GROUPS))
    assert same(replace(dose, origin=False).estimate("change", 4.0), mean(dose.values[3] - dose.unsteered, GROUPS))
    shared = replace(dose, values=dose.values + 50.0 * dose.unsteered, unsteered=51.0 * dose.unsteered)
    assert same(dose.estimate("change", 4.0), shared.estimate("change", 4.0))


@pytest.mark.parametrize(("origin", "kept"), [(True, (0, 1, 4, 2, 3)), (False, (0, 1, 2, 3))])
def test_the_smallest_step_is_bounded_by_its_steps(origin, kept):
    dose = sweep(rise=0.05, origin=origin)
    points = np.vstack([dose.values, dose.unsteered])[list(kept)]
    steps = np.diff(points, axis=0)
    estimate = dose.estimate("smallest_step")
    assert estimate.value == pytest.approx(steps.mean(axis=1).min(), rel=1e-12)
    assert estimate.low == pytest.approx(min(mean(step, GROUPS).low for step in steps), rel=1e-12)
    assert estimate.high == pytest.approx(min(mean(step, GROUPS, alpha=0.025 / len(steps)).high for step in steps), rel=1e-12)
    assert estimate.high > min(mean(step, GROUPS).high for step in steps)
    assert estimate.quantity == "smallest_step" and estimate.alpha == 0.025
    assert "intersection–union" in estimate.method and f"least of {len(steps)} means" in estimate.method


def test_the_lower_bound_is_not_that_of_the_least_mean_but_the_least():
    """A step that is larger on average, and so uncertain that it may be below 0."""
    rng = np.random.default_rng(1)
    steps = [0.5 + 0.1 * rng.standard_normal(100), 1.0 + 8.0 * stats.zscore(rng.standard_normal(100))]
    estimate = Dose(np.cumsum(steps, axis=0), np.zeros(100), (1.0, 2.0), GROUPS, True).estimate("smallest_step")
    assert estimate.value == pytest.approx(steps[0].mean())
    assert estimate.low == pytest.approx(mean(steps[1], GROUPS).low) and estimate.low < 0.0 < mean(steps[0], GROUPS).low


def test_a_rise_that_bends_back_is_no_monotone_one():
    dose = sweep()
    assert dose.estimate("smallest_step").low > 0.0
    bent = replace(dose, values=np.vstack([dose.values[:3], dose.values[2] - 1.0 + 0.1 * dose.values[3]]))
    assert bent.estimate("smallest_step").high < 0.0 < bent.estimate("slope").low


def test_a_sign_reversal_is_the_weaker_of_the_two_ends():
    dose = sweep()
    up, down = dose.values[3] - dose.unsteered, dose.unsteered - dose.values[0]
    estimate = dose.estimate("sign_reversal")
    assert estimate.value == pytest.approx(min(up.mean(), down.mean()), rel=1e-12)
    assert estimate.low == pytest.approx(min(mean(up, GROUPS).low, mean(down, GROUPS).low), rel=1e-12)
    assert estimate.high == pytest.approx(min(mean(up, GROUPS, alpha=0.0125).high, mean(down, GROUPS, alpha=0.0125).high), rel=1e-12)
    upward_both = replace(dose, values=np.vstack([dose.values[3], *dose.values[1:]]))
    assert upward_both.estimate("sign_reversal").high < 0.0
    assert same(estimate, replace(dose, origin=False).estimate("sign_reversal"))


@pytest.mark.parametrize(("quantity", "strength"), QUANTITIES)
@pytest.mark.parametrize("origin", [True, False])
def test_an_excess_is_the_quantity_of_what_remains_without_the_null(quantity, strength, origin):
    """Contrast by contrast, prompt by prompt: what the draws share with the sweep, whatever its shape, is gone."""
    dose, null = sweep(origin=origin, draws=7)
    excess = dose.excess(quantity, null, strength)
    of_draws = [replace(dose, values=draw) for draw in null]
    rows = contrasts_of(quantity, STRENGTHS, strength, origin)
    less = [rows @ (each.values - each.unsteered) for each in (dose, *of_draws)]
    parts = less[0] - np.mean(less[1:], axis=0)
    assert excess.value == pytest.approx(parts.mean(axis=1).min(), rel=1e-12)
    assert excess.low == pytest.approx(min(mean(part, GROUPS).low for part in parts), rel=1e-12)
    assert excess.excess and excess.quantity == quantity and "in excess of the mean of 7 null draws" in excess.method
    assert not dose.estimate(quantity, strength).excess
    curve = np.array([5.0, -3.0, 2.0, 9.0])[:, None] * np.arange(100.0)
    shifted = replace(dose, values=dose.values + curve)
    assert same(excess, shifted.excess(quantity, null + curve, strength))


@pytest.mark.parametrize(("quantity", "strength"), QUANTITIES)
@pytest.mark.parametrize("origin", [True, False])
def test_the_statistic_of_a_draw_is_the_value_of_its_estimate(quantity, strength, origin):
    dose, null = sweep(origin=origin, draws=40)
    drawn = statistic_of(quantity, null, dose.unsteered, STRENGTHS, strength, origin)
    assert drawn == pytest.approx([replace(dose, values=draw).estimate(quantity, strength).value for draw in null], rel=1e-9, abs=1e-12)
    ranked = dose.null("shuffled labels", quantity, null, strength, alpha=0.05, decides=False)
    assert ranked.statistics == pytest.approx(drawn) and (ranked.alpha, ranked.decides, ranked.name) == (0.05, False, "shuffled labels")
    assert ranked.observed == pytest.approx(dose.estimate(quantity, strength).value, rel=1e-12)


def test_a_draw_within_rounding_is_a_tie_both_ways():
    dose, null = sweep(draws=3)
    null[0], null[1] = (dose.values - dose.unsteered) * (1 - 2e-7) + dose.unsteered, (dose.values - dose.unsteered) * (1 - 1e-3) + dose.unsteered
    ranked = dose.null("shuffled labels", "slope", null)
    assert ranked.k == 1 and ranked.statistics[0] == ranked.observed
    null[1] = (dose.values - dose.unsteered) * (1 + 1e-3) + dose.unsteered
    assert replace(dose.null("shuffled labels", "slope", null), downward=True).k == 2


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (lambda dose: dose, (1.0, 1.0)),
        (lambda dose: np.clip(dose, -2.0, 2.0), (0.0, 0.0)),
        (lambda dose: np.where(dose > 0.0, dose**2, dose), (1.0, 3.0)),
    ],
)
def test_saturation_is_the_outer_slope_over_the_inner(shape, expected):
    strengths = np.array([-4.0, -2.0, 1.0, 2.0, 4.0])
    values = 5.0 + np.outer(shape(strengths), np.linspace(0.5, 1.5, 40))
    assert saturation(values, np.full(40, 5.0), strengths) == pytest.approx(expected, abs=1e-12)
    assert Dose(values, np.full(40, 5.0), tuple(strengths), np.arange(40).astype(str), False).saturation() == (None, None)


def test_saturation_that_cannot_be_told_is_none():
    rng = np.random.default_rng(2)
    values = np.vstack([np.full(40, -1.0), rng.standard_normal(40) * 0.5, np.full(40, 6.0)])
    values[1] -= values[1].mean()
    assert saturation(values, np.zeros(40), (-1.0, 1.0, 2.0)) == (None, None)


def test_too_few_groups_and_too_many_steps_decide_nothing():
    few = sweep(groups=np.repeat([f"{number}" for number in range(19)], 4))
    for quantity, strength in QUANTITIES:
        (reason,) = few.estimate(quantity, strength).undecided
        assert reason.startswith(f"19 groups: the interval of {quantity}") or "worth 19" in reason
    dosed = {count: sweep(strengths=tuple(float(dose) for dose in range(1, count + 1)), rise=20.0) for count in (MOST_PARTS, MOST_PARTS + 1)}
    assert dosed[MOST_PARTS].estimate("smallest_step").undecided == ()
    assert dosed[MOST_PARTS + 1].estimate("smallest_step").undecided == ("13 steps: the interval of smallest_step is validated up to 12",)
    assert dosed[MOST_PARTS + 1].estimate("slope").undecided == ()


def test_a_step_that_decides_nothing_leaves_the_smallest_undecided():
    dose = sweep()
    still = replace(dose, values=np.vstack([dose.values[:3], dose.values[2]]))
    (reason,) = still.estimate("smallest_step").undecided
    assert "no width" in reason and still.estimate("slope").undecided == ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sweep(strengths=(1.0, 2.0)).estimate("sign_reversal"), "both signs"),
        (lambda: sweep(strengths=(-2.0, -1.0)).estimate("sign_reversal"), "both signs"),
        (lambda: sweep(strengths=(1.0,), origin=False).estimate("slope"), "slope needs two strengths"),
        (lambda: sweep(strengths=(1.0,), origin=False).estimate("smallest_step"), "smallest step needs two strengths"),
        (lambda: sweep().estimate("change"), "change is that at one strength"),
        (lambda: sweep().estimate("slope", 1.0), "slope with strength 1.0"),
        (lambda: sweep().estimate("change", 3.0), "no strength 3.0.*-2, -0.5, 1, 4"),
        (lambda: sweep(strengths=(1.0, 1.0)), "ascending"),
        (lambda: sweep(strengths=(2.0, 1.0)), "ascending"),
        (lambda: sweep(strengths=(0.0, 1.0)), "none of them 0"),
        (lambda: sweep(strengths=()), "strengths"),
        (lambda: sweep(groups=GROUPS[:1]).estimate("slope"), "one group"),
        (lambda: replace(sweep(), groups=GROUPS[:99]), r"unsteered must be floats of shape \(99,\)"),
        (lambda: replace(sweep(), strengths=(1.0, 2.0)), r"values must be floats of shape \(2, 100\)"),
        (lambda: replace(sweep(), values=np.where(np.arange(400).reshape(4, 100) == 207, np.nan, 1.0)), r"values\[2, 7\] is nan"),
        (lambda: sweep().excess("slope", np.zeros((4, 100))), r"\[draws, strengths, prompts\]"),
        (lambda: sweep().excess("slope", np.zeros((0, 4, 100))), r"\[draws, strengths, prompts\]"),
        (lambda: sweep().null("shuffled labels", "slope", np.zeros((9, 4, 99))), r"of shape \(9, 4, 100\)"),
        (lambda: sweep().excess("slope", np.full((9, 4, 100), np.inf)), r"null draws\[0, 0, 0\] is inf"),
    ],
)
def test_what_is_no_sweep_is_refused(call, message):
    with pytest.raises(StatisticsError, match=message):
        call()


def test_side_effects_are_means_with_names_of_their_own():
    values = np.random.default_rng(3).exponential(0.05, 100)
    estimate = side_effect("loss_change", values, GROUPS, alpha=0.05)
    assert same(estimate, mean(values, GROUPS, alpha=0.05)) and estimate.quantity == "loss_change"
    assert decide(estimate, "<=", 0.1).verdict is Verdict.PASS and decide(estimate, ">=", 0.01).verdict is Verdict.PASS
    assert str(side_effect("kl", values, GROUPS)).startswith("KL 0.0")
    rare = np.where(np.arange(100) == 7, 1.0, 0.0)
    assert mean(rare, GROUPS).low < 0.0 == side_effect("kl", rare, GROUPS).low and side_effect("loss_change", rare, GROUPS).low < 0.0
    assert side_effect("kl", values - values.min() - 1e-6, GROUPS).n == 100
    with pytest.raises(StatisticsError, match=r"never negative, got -0\.001"):
        side_effect("kl", values - values.min() - 1e-3, GROUPS)
    assert "no data could fail" in vacuous("kl", ">=", 0.0) and "no data could pass" in vacuous("kl", "<=", 0.0)
    assert vacuous("kl", "<=", 0.1) is vacuous("loss_change", "<=", 0.0) is None
    assert size("change", ">", 0.0, expected=0.5) == size("mean", ">", 0.0, expected=0.5)


@pytest.mark.parametrize(("lost", "gained"), [(0.0, 0.0), (0.02, 0.0), (0.0, 0.05), (0.05, 0.05), (0.2, 0.02), (0.3, 0.3), (0.8, 0.1)])
@pytest.mark.parametrize("n", [12, 40])
def test_bounds_of_a_change_of_capability_are_wrong_at_most_alpha_of_the_time(n, lost, gained):
    """Exactly: over every number of questions lost and gained, with its multinomial probability."""
    truth, below, above = gained - lost, 0.0, 0.0
    for falls in range(n + 1):
        for rises in range(n + 1 - falls):
            chance = float(stats.multinomial.pmf([falls, rises, n - falls - rises], n, [lost, gained, 1.0 - lost - gained]))
            if chance < 1e-12:
                continue
            found = side_effect("capability_change", np.repeat([-1.0, 1.0, 0.0], [falls, rises, n - falls - rises]), np.arange(n), alpha=0.025)
            below += chance * (found.low > truth)
            above += chance * (found.high < truth)
    assert below <= 0.025 and above <= 0.025


def test_a_change_that_loses_no_answer_can_be_shown_to_do_no_harm_and_one_that_loses_many_to_do_some():
    half = side_effect("capability_change", np.repeat([0.5, 0.0], 30), np.arange(60))
    assert half.low < half.value == 0.25 < half.high
    none = side_effect("capability_change", np.zeros(40), np.arange(40))
    bound = 1.0 - 0.0125 ** (1 / 40)
    assert (none.low, none.high) == (pytest.approx(-bound), pytest.approx(bound)) and decide(none, ">=", -0.15).verdict is Verdict.PASS
    assert decide(none, ">=", -0.1).needed.n == pytest.approx(np.log(0.0125) / np.log(0.9), abs=2)
    cases = (
        (1, 0, Verdict.PASS),
        (3, 0, Verdict.INCONCLUSIVE),
        (20, 0, Verdict.FAIL),
        (40, 0, Verdict.FAIL),
        (20, 20, Verdict.INCONCLUSIVE),
    )
    for lost, gained, verdict in cases:
        changes = np.repeat([-1.0, 1.0, 0.0], [lost, gained, 40 - lost - gained])
        assert decide(side_effect("capability_change", changes, np.arange(40)), ">=", -0.15).verdict is verdict
    with pytest.raises(StatisticsError, match="between -1 and 1, got 3"):
        side_effect("capability_change", np.array([0.0, 3.0]), np.arange(2))
    planned = size("capability_change", ">=", -0.2, expected=0.0)
    assert planned.n == planned.groups <= 22
    assert size("capability_change", ">=", -0.2, expected=-0.05).n > planned.n
