import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mi_audit.detectors.fitting import fitter
from mi_audit.detectors.linear import DifferenceOfMeans, MassMean
from mi_audit.detectors.logistic import STRENGTHS
from mi_audit.detectors.methods import mi_audit_probe_methods
from mi_audit.detectors.threshold import calibrate
from mi_audit.errors import DetectorError
from mi_audit.plan.detectors import FalsePositiveRate, FixedThreshold
from mi_audit.suites.suite import suite


def classes(n, d, seed=0, apart=1.0):
    """Two correlated normal classes of unequal size in groups of four that hold both."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 4 == 0
    acts = random.standard_normal((n, d)) @ random.standard_normal((d, d)) / np.sqrt(d) + 5.0
    acts[labels] += apart * random.standard_normal(d)
    return acts, labels, tuple(f"g{row // 4}" for row in range(n))


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_difference_of_means_by_hand():
    acts = np.array([[3.0, 1.0], [5.0, 1.0], [0.0, 5.0], [0.0, 5.0], [0.0, 5.0], [0.0, 5.0]])
    labels = np.array([True, True, False, False, False, False])
    fitted = DifferenceOfMeans(acts).fit(labels[None])
    np.testing.assert_allclose(fitted.weights, [[np.sqrt(0.5), -np.sqrt(0.5)]])
    centre = acts.mean(axis=0)
    np.testing.assert_allclose(fitted.centre(), centre)
    np.testing.assert_allclose(fitted.scores(np.array([[2.0, 0.0]])), [[((2 - centre[0]) + centre[1]) / np.sqrt(2)]])


@pytest.mark.parametrize(("n", "d"), [(80, 6), (40, 100)])
def test_mass_mean_solves_with_the_shrunk_covariance_of_each_labelling(n, d):
    acts, labels, _ = classes(n, d)
    random = np.random.default_rng(1)
    labellings = np.array([labels, random.permutation(labels), random.random(n) < 0.5])
    fitted = MassMean(acts).fit(labellings)
    for weight, each in zip(fitted.weights, labellings, strict=True):
        residuals = np.where(each[:, None], acts - acts[each].mean(axis=0), acts - acts[~each].mean(axis=0))
        covariance = LedoitWolf(assume_centered=True).fit(residuals).covariance_
        np.testing.assert_allclose(weight, np.linalg.solve(covariance, acts[each].mean(axis=0) - acts[~each].mean(axis=0)), rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(fitted.mean, acts.mean(axis=0))


def test_mass_mean_is_the_direction_of_linear_discriminant_analysis():
    # scikit-learn shrinks each class's covariance by itself and on standardised activations, so the two agree only as far as shrinkage is small
    acts, labels, _ = classes(4000, 10, apart=0.3)
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(acts, labels)
    assert cosine(MassMean(acts).fit(labels[None]).weights[0], peer.coef_[0]) > 0.999


@pytest.mark.parametrize(("n", "d"), [(80, 5), (60, 90)])
def test_logistic_is_sklearn_pipeline_with_grouped_cross_validation(n, d):
    acts, labels, groups = classes(n, d)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000))
    search = GridSearchCV(pipeline, {"logisticregression__C": STRENGTHS}, scoring="neg_log_loss", cv=StratifiedGroupKFold(5))
    search.fit(acts, labels, groups=np.array(groups))
    ours = fitter("logistic", acts, labels, groups)
    assert ours.regularisation == search.best_params_["logisticregression__C"]
    new = classes(20, d, seed=3)[0]
    np.testing.assert_allclose(ours.fit(labels[None]).scores(new)[0], search.decision_function(new), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", mi_audit_probe_methods())
def test_the_centre_carries_the_intercept_and_labellings_do_not_meet(method):
    acts, labels, groups = classes(40, 8)
    new = classes(12, 8, seed=5)[0]
    other = np.roll(labels, 1)
    prepared = fitter(method, acts, labels, groups)
    alone = prepared.fit(labels[None])
    np.testing.assert_allclose((new - alone.centre()) @ alone.weights[0], alone.scores(new)[0], rtol=1e-9, atol=1e-9)
    together = prepared.fit(np.array([other, labels]))
    np.testing.assert_allclose(together.scores(new)[1], alone.scores(new)[0], rtol=1e-6, atol=1e-8)
    assert not np.allclose(together.scores(new)[0], together.scores(new)[1])


def test_what_can_not_be_fitted_says_why():
    acts, labels, groups = classes(40, 3)
    with pytest.raises(DetectorError, match="same mean"):
        fitter("difference_of_means", np.ones((40, 3)), labels, groups).fit(labels[None])
    with pytest.raises(DetectorError, match="do not vary within the classes"):
        fitter("mass_mean", np.where(labels[:, None], 1.0, 0.0) * np.ones((40, 3)), labels, groups).fit(labels[None])
    with pytest.raises(DetectorError, match="at least 2 groups with positives"):
        fitter("logistic", acts, labels, ("only",) * 40)
    lopsided = np.arange(40) < 36
    with pytest.raises(DetectorError, match="do not vary"):
        fitter("logistic", np.ones((40, 3)), lopsided, tuple("a" * 35 + "b" + "cdef"))


def test_the_threshold_is_an_order_statistic():
    negatives = suite([f"t{number}" for number in range(99)], name="negatives")
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))
    assert calibrate(FalsePositiveRate(0.01, negatives), scores[None])[0] == 99
    assert calibrate(FalsePositiveRate(0.05, negatives), np.array([scores, scores * 2])).tolist() == [95, 190]
    assert calibrate(FixedThreshold(0.5), np.empty((3, 0))).tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(DetectorError, match=r"needs at least 99 negatives, negatives has 98"):
        calibrate(FalsePositiveRate(0.01, negatives), scores[None, :98])


@pytest.mark.parametrize(("rate", "n"), [(0.01, 99), (0.05, 30), (0.1, 57)])
def test_a_new_negative_exceeds_the_threshold_at_most_at_the_rate(rate, n):
    rule = FalsePositiveRate(rate, suite(["any"], name="any"))
    random = np.random.default_rng(7)
    thresholds = calibrate(rule, random.standard_normal((20_000, n)))
    exceeding = (random.standard_normal(20_000) > thresholds).mean()
    assert exceeding <= rate + 2 * np.sqrt(rate * (1 - rate) / 20_000)
    assert exceeding >= rate - 1 / (n + 1) - 3 * np.sqrt(rate * (1 - rate) / 20_000)
