"""Scores known up to a spread: whatever the exact ones are, the widened interval speaks for them."""

import numpy as np
import pytest
from scipy.stats import hypergeom

from mi_audit.detectors.quantities import measure
from mi_audit.stats.claim import decide
from mi_audit.stats.spread import Spread
from mi_audit.stats.verdict import Verdict
from mi_audit.stats.widened import widened

QUANTITIES = ("auroc", "recall", "rate", "accuracy", "mean", "mean_difference", "paired_difference", "effect_size")
SHARES = ("recall", "rate", "accuracy")
ALPHA = 0.025


class Data:
    """Scores of prompts in groups that hold both classes in pairs, and the estimates on them."""

    def __init__(self, seed, groups=30, size=4, pull=0.0):
        random = np.random.default_rng(seed)
        n = groups * size
        self.random, self.n = random, n
        self.groups, self.pairs = np.array([f"g{row // size}" for row in range(n)]), np.array([f"p{row // 2}" for row in range(n)])
        self.labels = np.arange(n) % 2 == 0
        self.values = random.normal(size=n) + random.uniform(0, 2) * self.labels + pull * np.repeat(random.normal(size=groups), size)
        self.threshold = float(random.normal(1, 1))

    def estimate(self, quantity, values, more_spread=0.0, alpha=ALPHA):
        return measure(quantity, values, self.threshold, self.labels, self.groups, self.pairs, alpha, more_spread)

    def widened(self, quantity, delta):
        return self.widened_on(quantity, Spread("bfloat16", delta, self.n, self.n))

    def widened_on(self, quantity, spread):
        def again(values, more_spread, alpha):
            return self.estimate(quantity, values, more_spread, alpha)

        return widened(self.estimate(quantity, self.values), again, self.values, self.labels, spread)

    def perturbed(self, delta):
        """Scores within delta: at random, at random ends, by class, away from and towards the threshold and the mean, by group."""
        sign, ends = np.where(self.labels, 1.0, -1.0), self.random.choice([-1.0, 1.0], self.n)
        by_group = self.random.choice([-1.0, 1.0], self.n)[np.unique(self.groups, return_inverse=True)[1]]
        away = np.sign(self.values - self.values.mean())
        for shift in (self.random.uniform(-1, 1, self.n), ends, sign, -sign, np.ones(self.n), -np.ones(self.n), away, -away, by_group, sign * by_group):
            yield self.values + delta * (1 - 1e-12) * shift


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_widened_interval_holds_the_unwidened_one_and_the_value_of_all_scores_within_the_spread(quantity):
    for seed in range(25):
        data = Data(seed, groups=10 + seed, pull=seed % 3 / 2)
        delta = float(10 ** data.random.uniform(-3, -0.3))
        plain, wide = data.estimate(quantity, data.values), data.widened(quantity, delta)
        assert wide.low <= plain.low and plain.high <= wide.high
        assert (wide.value, wide.unwidened.low, wide.unwidened.high) == (plain.value, plain.low, plain.high)
        for exact in data.perturbed(delta):
            assert wide.low - 1e-12 <= data.estimate(quantity, exact).value <= wide.high + 1e-12


@pytest.mark.parametrize("quantity", SHARES)
def test_the_widened_interval_of_a_share_holds_that_of_all_scores_within_the_spread(quantity):
    for seed in range(40):
        data = Data(seed, groups=60, size=1)
        wide = data.widened(quantity, 0.2)
        for exact in data.perturbed(0.2):
            other = data.estimate(quantity, exact)
            assert wide.low <= other.low and other.high <= wide.high


def test_the_widening_of_each_quantity_is_no_more_than_the_spread_can_do():
    """Against the shift that is worst for each: the threshold moved, the bound moved, the classes moved towards each other."""
    data, delta = Data(1, groups=40), 0.1
    sign = np.where(data.labels, 1.0, -1.0)
    for quantity, factor in (("mean", 1), ("mean_difference", 2), ("paired_difference", 2)):
        plain, wide = data.estimate(quantity, data.values), data.widened(quantity, delta)
        assert (wide.low, wide.high) == pytest.approx((plain.low - factor * delta, plain.high + factor * delta))
    down, up = data.values - delta * sign, data.values + delta * sign
    assert data.widened("auroc", delta).low == data.estimate("auroc", down).low
    assert data.widened("auroc", delta).high == data.estimate("auroc", up).high
    data.threshold = 1.0
    rate = data.widened("rate", delta)
    fired = [int((data.values > data.threshold + shift).sum()) for shift in (delta, 0, -delta)]
    assert fired[0] < fired[1] < fired[2]
    data.threshold += delta
    assert rate.low == data.estimate("rate", data.values).low
    data.threshold -= 2 * delta
    assert rate.high == data.estimate("rate", data.values).high


@pytest.mark.parametrize("quantity", ["mean", "rate", "mean_difference", "effect_size"])
def test_the_bound_errs_no_more_often_than_alpha_though_all_scores_are_off_by_the_spread(quantity):
    """The exact scores are normal, so that the truth is known; low precision adds the spread to all that speaks for the claim."""
    delta, runs, missed, missed_unwidened = 0.5, 400, 0, 0
    for seed in range(runs):
        data = Data(seed)
        exact = data.random.normal(size=data.n) + 0.6 * data.labels
        data.threshold, truth = 0.9, {"mean": 0.3, "rate": 0.2831, "mean_difference": 0.6, "effect_size": 0.6}[quantity]
        data.values = exact + delta * np.where(data.labels | (quantity in ("mean", "rate")), 1.0, -1.0)
        wide = data.widened(quantity, delta)
        missed += wide.low > truth
        missed_unwidened += wide.unwidened.low > truth
    assert missed <= runs * (ALPHA + 3 * (ALPHA * (1 - ALPHA) / runs) ** 0.5)
    assert missed_unwidened > runs / 2


def test_a_claim_that_only_the_widening_undecides_says_so_and_asks_for_no_more_prompts():
    data = Data(3, groups=40)
    wide = data.widened("mean", 0.25)
    between = (wide.low + wide.unwidened.low) / 2
    claim = decide(wide, ">=", between)
    assert claim.verdict is Verdict.INCONCLUSIVE and claim.needed is None
    (reason,) = claim.reasons
    assert "in bfloat16 scores differ from float32 by up to 0.25 on all 160 prompts;" in reason
    assert "run with --audit-dtype float32 to decide" in reason
    plain = data.estimate("mean", data.values)
    assert decide(plain, ">=", between).verdict is Verdict.PASS
    unsure = decide(wide, ">=", plain.value)
    assert unsure.verdict is Verdict.INCONCLUSIVE and "float32" not in unsure.reasons[0]
    assert decide(wide, ">=", wide.low - 0.01).verdict is Verdict.PASS
    assert decide(wide, ">=", wide.high + 0.01).verdict is Verdict.FAIL


def test_an_effect_size_is_undecided_where_the_spread_exceeds_what_varies():
    data = Data(4)
    coarse = data.widened("effect_size", 3.0)
    assert decide(coarse, ">=", coarse.low - 1).verdict is Verdict.INCONCLUSIVE
    assert "more than they vary within the classes" in coarse.undecided[-1]


def test_equal_scores_are_not_widened():
    data = Data(5)
    assert data.widened("mean", 0.0).unwidened is None


@pytest.mark.parametrize(("n", "of"), [(512, 513), (512, 600), (512, 3000), (512, 100_000), (20, 21), (64, 64)])
def test_no_more_prompts_differ_by_more_than_the_sample_shows_than_chance_allows(n, of):
    """That a sample misses all of the m prompts that differ most is a draw without replacement: SciPy's hypergeometric distribution."""
    for alpha in (0.1, 0.025, 0.005):
        others = Spread("bfloat16", 0.1, n, of).others(alpha)
        assert hypergeom(of, others + 1, n).pmf(0) <= alpha / 10
        assert others == 0 or hypergeom(of, others, n).pmf(0) > alpha / 10


@pytest.mark.parametrize("quantity", ["auroc", *SHARES])
def test_the_interval_of_a_sampled_spread_holds_that_of_scores_of_which_some_differ_by_anything(quantity):
    """The prompts outside the sample are turned against the quantity, in each class and in both, those first that speak most for it and those at random."""
    for seed in range(20):
        data = Data(seed, groups=60, size=1 + seed % 2 * 3)
        spread = Spread("bfloat16", 0.1, 50, data.n)
        others = spread.others(ALPHA)
        wide = data.widened_on(quantity, spread)
        assert 0 < others < data.n / 4 and wide.low >= 0 and wide.high <= 1
        sign = np.ones(data.n) if quantity == "rate" else np.where(data.labels, 1.0, -1.0)
        classes = [sign > 0, sign < 0, np.ones(data.n, dtype=bool)]
        for way in (-1, 1):
            for rows in (np.flatnonzero(flags) for flags in classes if flags.any()):
                for chosen in (
                    rows[np.argsort(way * sign[rows] * data.values[rows])[:others]],
                    data.random.choice(rows, min(others, len(rows)), replace=False),
                ):
                    exact = data.values + 0.1 * (1 - 1e-12) * way * sign
                    exact[chosen] = 100 * way * sign[chosen]
                    other = data.estimate(quantity, exact)
                    assert wide.low <= other.value <= wide.high
                    if data.n == 60 and quantity != "auroc":
                        assert wide.low <= other.low and other.high <= wide.high


@pytest.mark.parametrize("quantity", ["mean", "mean_difference", "paired_difference", "effect_size"])
def test_a_mean_is_undecided_where_prompts_may_differ_by_anything(quantity):
    data = Data(1, groups=40)
    sampled = data.widened_on(quantity, Spread("bfloat16", 0.0, 64, data.n))
    claim = decide(sampled, ">=", sampled.low - 1)
    assert claim.verdict is Verdict.INCONCLUSIVE
    assert "on a sample of 64 of 160 prompts" in claim.reasons[0] and "run with --audit-dtype float32" in claim.reasons[0]
    assert not data.widened_on(quantity, Spread("bfloat16", 0.0, data.n, data.n)).undecided


def test_what_makes_a_moved_estimate_undecided_is_told_once():
    """Skewed scores whose standard deviation, less the spread, is too small for an effect size to be trusted."""
    for seed in range(200):
        data = Data(seed, groups=20, size=2)
        data.values = data.random.lognormal(0, 0.4, data.n) + data.labels
        plain, wide = data.estimate("effect_size", data.values), data.widened("effect_size", 0.15)
        assert set(plain.undecided) <= set(wide.undecided) and len(set(wide.undecided)) == len(wide.undecided)
        if not plain.undecided and wide.undecided:
            return
    raise AssertionError("none of the moved estimates was undecided")
