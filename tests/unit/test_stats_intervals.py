"""Values and intervals against independent sources."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from sklearn.metrics import roc_auc_score

from mi_audit.errors import StatisticsError
from mi_audit.stats.auroc import auroc, auroc_difference, auroc_value, count_pairs
from mi_audit.stats.checks import checked_clusters
from mi_audit.stats.jackknife import Jackknife
from mi_audit.stats.means import effect_size, mean, mean_difference, paired_difference
from mi_audit.stats.rates import rate


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def sample(rng, *, groups=24, rows=6, ties=False):
    codes = np.repeat(np.arange(groups), rows)
    labels = rng.random(len(codes)) < 0.4
    scores = rng.standard_normal(len(codes)) + 0.8 * rng.standard_normal(groups)[codes] + 1.1 * labels
    return (np.round(scores, 0) if ties else scores), labels, np.array([f"template {code:02d}" for code in codes])


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_value_is_scikit_learns(rng, ties):
    scores, labels, groups = sample(rng, ties=ties)
    expected = roc_auc_score(labels, scores)
    assert auroc_value(scores, labels) == pytest.approx(expected, abs=1e-12)
    assert auroc(scores, labels, groups).value == pytest.approx(expected, abs=1e-12)


def wins_of_pairs(scores, labels):
    positive, negative = scores[labels][:, None], scores[~labels][None, :]
    return (positive > negative) + 0.5 * (positive == negative)


@pytest.mark.parametrize("ties", [False, True])
def test_pairs_counted_by_rank_are_those_counted_one_by_one(rng, ties):
    scores, labels, groups = sample(rng, ties=ties)
    pairs = count_pairs(scores, labels, checked_clusters(groups, len(scores)))
    wins = wins_of_pairs(scores, labels)
    of_positive, of_negative = groups[labels][:, None], groups[~labels][None, :]
    between = of_positive != of_negative
    assert pairs.value_between == pytest.approx(wins[between].mean(), abs=1e-12)
    without = [wins[between & (of_positive != group) & (of_negative != group)].mean() for group in np.unique(groups)]
    np.testing.assert_allclose(pairs.without_each(), without, atol=1e-12)


def test_auroc_variance_of_ungrouped_rows_is_delongs(rng):
    scores, labels, _ = sample(rng, groups=160, rows=1)
    wins = wins_of_pairs(scores, labels)
    delong = wins.mean(axis=1).var(ddof=1) / wins.shape[0] + wins.mean(axis=0).var(ddof=1) / wins.shape[1]
    pairs = count_pairs(scores, labels, checked_clusters(np.arange(160), 160))
    assert Jackknife.of(pairs.value_between, pairs.without_each(), 1.0).variance == pytest.approx(delong, rel=0.02)


def test_auroc_is_symmetric_under_a_change_of_sign(rng):
    scores, labels, groups = sample(rng)
    one, other = auroc(scores, labels, groups), auroc(-scores, labels, groups)
    assert (other.value, other.low, other.high) == pytest.approx((1 - one.value, 1 - one.high, 1 - one.low), abs=1e-6)


def test_perfect_separation_has_a_lower_bound_that_the_groups_set():
    labels = np.tile([True, False], 160)
    groups = np.repeat(np.arange(40), 8)
    mixed, apart = auroc(labels * 1.0, labels, groups), auroc(np.sort(labels) * 1.0, np.sort(labels), groups)
    assert mixed.value == mixed.high == apart.high == 1.0
    assert 0.9 < apart.low < mixed.low < 0.995


def test_auroc_that_no_data_could_bound_is_undecided():
    labels = np.array([True] * 5 + [False] * 15)
    one_group = auroc(np.arange(20.0), labels, np.array([0] * 5 + list(range(1, 16))))
    assert (one_group.low, one_group.high) == (0.0, 1.0)
    assert "one class is all in one group" in one_group.undecided[0]
    constant = auroc(np.zeros(40), np.tile([True, False], 20), np.arange(40))
    assert "all scores are equal" in constant.undecided[-1]


def test_difference_of_aurocs_is_narrower_than_the_two_apart(rng):
    scores, labels, groups = sample(rng, groups=40)
    other = scores + 0.3 * rng.standard_normal(len(scores))
    difference = auroc_difference(scores, other, labels, groups)
    assert difference.value == pytest.approx(roc_auc_score(labels, scores) - roc_auc_score(labels, other), abs=1e-12)
    one = auroc(scores, labels, groups)
    assert difference.high - difference.low < 0.6 * (one.high - one.low)
    assert difference.quantity == "paired_difference"


@pytest.mark.parametrize(("hits", "n"), [(0, 40), (1, 368), (13, 50), (50, 50)])
@pytest.mark.parametrize("alpha", [0.025, 0.001])
def test_ungrouped_rate_is_scipys_exact_interval(hits, n, alpha):
    estimate = rate(np.arange(n) < hits, np.arange(n), alpha=alpha)
    exact = stats.binomtest(hits, n).proportion_ci(1 - 2 * alpha, method="exact")
    assert (estimate.low, estimate.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert not estimate.undecided


def test_grouped_rate_is_korn_graubards_where_the_design_effect_is_large(rng):
    groups = np.repeat(np.arange(60), 5)
    hits = (rng.random(60) < 0.5)[groups]  # a group is all true or all false: 60 independent outcomes
    share = hits.mean()
    estimate = rate(hits, groups)
    n = 60 * 59 / 60 * (stats.t.ppf(0.975, 299) / stats.t.ppf(0.975, 59)) ** 2
    assert estimate.low == pytest.approx(stats.beta.ppf(0.025, share * n, (1 - share) * n + 1), abs=1e-9)
    assert estimate.high == pytest.approx(stats.beta.ppf(0.975, share * n + 1, (1 - share) * n), abs=1e-9)


def test_no_events_in_groups_are_not_read_as_independence():
    groups = np.repeat(np.arange(40), 10)
    assert rate(np.zeros(400, dtype=bool), groups).high > 2.5 * rate(np.zeros(400, dtype=bool), np.arange(400)).high


def test_mean_of_ungrouped_symmetric_values_is_students_t_and_never_narrower(rng):
    half = rng.standard_normal(100)
    values = np.concatenate([half, -half]) + 3.0  # no skewness
    t = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    estimate = mean(values, np.arange(200))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low <= t.low and estimate.high >= t.high
    assert estimate.high - estimate.low == pytest.approx(t.high - t.low, rel=0.03)


def test_mean_in_equal_groups_has_statsmodels_cluster_robust_error(rng):
    _, _, groups = sample(rng)
    values = rng.standard_normal(len(groups)) + rng.standard_normal(24)[np.unique(groups, return_inverse=True)[1]]
    codes = np.unique(groups, return_inverse=True)[1]
    fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": codes})
    shifts = np.array([values[groups != group].mean() for group in np.unique(groups)]) - values.mean()
    jackknife = Jackknife(value=values.mean(), shifts=shifts, worth=24.0)
    assert jackknife.variance**0.5 == pytest.approx(fit.bse[0], rel=1e-9)
    estimate, (low, high) = mean(values, groups), jackknife.bounds(0.025)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12)


def test_mean_difference_has_statsmodels_cluster_robust_error(rng):
    scores, labels, groups = sample(rng, groups=60)
    codes = np.unique(groups, return_inverse=True)[1]
    fit = sm.OLS(scores, sm.add_constant(labels.astype(float))).fit(cov_type="cluster", cov_kwds={"groups": codes})
    estimate = mean_difference(scores, labels, groups)
    assert estimate.value == pytest.approx(fit.params[1], abs=1e-12)
    half_width = stats.t.ppf(0.975, 59) * fit.bse[1]
    assert estimate.high - estimate.low == pytest.approx(2 * half_width, rel=0.15)
    assert estimate.high - estimate.low > 2 * half_width


def test_skewed_values_widen_the_interval_on_the_side_of_the_long_tail(rng):
    values = rng.exponential(size=200)
    estimate = mean(values, np.arange(200))
    t = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert estimate.low == pytest.approx(t.low, abs=1e-12)
    assert estimate.high - estimate.value > 1.2 * (t.high - values.mean())


def test_paired_difference_is_the_mean_over_pairs(rng):
    pairs = np.repeat(np.arange(80), 3)
    labels = np.tile([True, False, False], 80)
    values = rng.standard_normal(240) + labels
    by_pair = values[labels] - (values[~labels].reshape(80, 2).mean(axis=1))
    estimate = paired_difference(values, labels, pairs, pairs // 2)
    assert estimate.value == pytest.approx(by_pair.mean(), abs=1e-12)
    assert estimate.groups == 40
    of_differences = mean(by_pair, np.arange(80) // 2)
    assert (estimate.low, estimate.high) == pytest.approx((of_differences.low, of_differences.high), abs=1e-12)


def test_effect_size_is_hedges_g(rng):
    values, labels, groups = sample(rng, groups=40)
    one, other = values[labels], values[~labels]
    pooled = ((len(one) - 1) * one.var(ddof=1) + (len(other) - 1) * other.var(ddof=1)) / (len(values) - 2)
    d = (one.mean() - other.mean()) / pooled**0.5
    assert effect_size(values, labels, groups).value == pytest.approx(d * (1 - 3 / (4 * len(values) - 9)), rel=1e-4)
    assert effect_size(1e6 + values, labels, groups).value == pytest.approx(effect_size(values, labels, groups).value, rel=1e-6)


def test_too_few_groups_or_an_alpha_that_was_not_validated_decide_nothing(rng):
    scores, labels, groups = sample(rng, groups=9)
    assert "9 groups" in auroc(scores, labels, groups).undecided[0]
    assert "9 groups" in rate(scores > 0, groups).undecided[0]
    scores, labels, groups = sample(rng, groups=19)
    assert not auroc(scores, labels, groups).undecided
    assert "19 groups" in mean(scores, groups).undecided[0]
    labels = groups < "template 05"  # 5 groups of positives, 14 of negatives
    difference = mean_difference(*(np.r_[part, part] for part in (scores, labels)), np.r_[groups, np.char.add(groups, "b")])
    assert "38 groups that are worth 10.0" in difference.undecided[0]
    assert "alpha = 0.001" in auroc(scores, labels, groups, alpha=0.001).undecided[0]


def test_values_carried_by_a_few_groups_decide_nothing():
    assert "a few groups carry the result" in mean(np.r_[np.zeros(99), 100.0], np.arange(100)).undecided[0]
    for constant in (0.0, 0.1, 2.0, 1e9 / 3):  # 0.1 has no exact mean
        assert "no width" in mean(np.full(40, constant), np.arange(40)).undecided[0]
        labels = np.tile([True, False], 40)
        assert "no width" in mean_difference(labels + constant, labels, np.repeat(np.arange(40), 2)).undecided[0]


BAD = {
    "NaN": (lambda: auroc([0.0, float("nan")], [True, False], [0, 1]), r"scores\[1\] is nan"),
    "infinity": (lambda: mean([1.0, float("inf")], [0, 1]), r"values\[1\] is inf"),
    "one class": (lambda: auroc([0.0, 1.0], [True, True], [0, 1]), "no negative prompt"),
    "labels": (lambda: auroc([0.0, 1.0], [1, 0], [0, 1]), "booleans"),
    "lengths": (lambda: rate([True, False], [0, 1, 2]), "3 rows where 2"),
    "lengths of two": (lambda: auroc_difference([0.0, 1.0], [1.0], [True, False], [0, 1]), "scores_b has 1"),
    "groups": (lambda: rate([True, False], [0.5, 1.5]), "strings"),
    "empty": (lambda: rate([], []), "non-empty"),
    "alpha": (lambda: rate([True], [0], alpha=0.5), "alpha"),
    "quantity": (lambda: rate([True], [0], quantity="precision"), "precision"),
    "one group": (lambda: mean([1.0, 2.0], ["a", "a"]), "one group"),
    "one group of a class": (lambda: mean_difference([1.0, 2.0, 3.0], [True, False, False], [0, 1, 2]), "single group"),
    "lone pair": (lambda: paired_difference([1.0, 2.0], [True, False], ["a", "b"], [0, 0]), "Pair np.str_\\('a'\\)|Pair 'a'"),
    "split pair": (lambda: paired_difference([1.0, 2.0], [True, False], ["a", "a"], [0, 1]), "two groups"),
    "no spread": (lambda: effect_size([1.0, 0.0] * 4, [True, False] * 4, np.repeat(np.arange(4), 2)), "all equal"),
}


@pytest.mark.parametrize("case", BAD)
def test_undefined_quantities_are_errors_that_say_why(case):
    call, message = BAD[case]
    with pytest.raises(StatisticsError, match=message):
        call()
