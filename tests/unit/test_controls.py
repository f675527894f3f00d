import numpy as np
import pytest
from scipy.stats import rankdata

from mi_audit.detectors.controls import draws_for, random_directions, shuffle, stream
from mi_audit.detectors.linear import DifferenceOfMeans, Directions
from mi_audit.stats.controls import Null

MIXED = (("a", 3, 1), ("b", 1, 1), ("c", 2, 5))
PURE = (("p", 4, 0), ("q", 2, 0), ("r", 0, 3), ("s", 0, 1), ("t", 0, 2))


def rows(*groups):
    names = [name for name, positives, negatives in groups for _ in range(positives + negatives)]
    labels = [index < positives for _, positives, negatives in groups for index in range(positives + negatives)]
    order = np.random.default_rng(0).permutation(len(names))
    return np.array(labels)[order], tuple(np.array(names)[order])


def test_shuffles_keep_the_structure():
    labels, groups = rows(*MIXED, *PURE)
    names = np.array(groups)
    drawn = shuffle(labels, groups, 400, np.random.default_rng(1))
    for name, positives, _ in MIXED:
        here = drawn[:, names == name]
        assert (here.sum(axis=1) == positives).all()
        np.testing.assert_allclose(here.mean(axis=0), positives / here.shape[1], atol=0.12)
    pure = np.array([drawn[:, names == name].all(axis=1) for name, _, _ in PURE])
    assert all((drawn[:, names == name].all(axis=1) | ~drawn[:, names == name].any(axis=1)).all() for name, _, _ in PURE)
    assert (pure.sum(axis=0) == 2).all()
    np.testing.assert_allclose(pure.mean(axis=1), 2 / 5, atol=0.12)


def test_streams_depend_on_seed_and_key_alone():
    first = stream(1, "a", "b").random(4)
    assert (stream(1, "a", "b").random(4) == first).all()
    assert not any((stream(*other).random(4) == first).any() for other in [(2, "a", "b"), (1, "ab"), (1, "b", "a")])


def test_random_directions_have_the_covariance_and_the_norm():
    random = np.random.default_rng(0)
    acts = random.standard_normal((500, 3)) * [5.0, 1.0, 0.2] + 100.0
    drawn = random_directions(acts, np.zeros(500, dtype=bool), Directions(acts.mean(axis=0), np.array([[0.0, 3.0, 4.0]]), np.array([0.5])), 20_000, random)
    np.testing.assert_allclose(np.linalg.norm(drawn.weights, axis=1), 5.0)
    gaussian = random.multivariate_normal(np.zeros(3), np.cov(acts.T), 20_000)
    gaussian *= 5 / np.linalg.norm(gaussian, axis=1, keepdims=True)
    np.testing.assert_allclose(np.cov(drawn.weights.T), np.cov(gaussian.T), atol=0.25)
    np.testing.assert_allclose(drawn.scores(acts.mean(axis=0)[None])[:, 0], 0.5)


def test_random_directions_do_not_point_from_class_to_class():
    random = np.random.default_rng(0)
    labels = np.arange(400) % 2 == 0
    acts = random.standard_normal((400, 3)) + np.outer(labels, [50.0, 0.0, 0.0])
    drawn = random_directions(acts, labels, Directions(acts.mean(axis=0), np.array([[1.0, 0.0, 0.0]]), np.zeros(1)), 2_000, random)
    np.testing.assert_allclose((drawn.weights**2).mean(axis=0), 1 / 3, atol=0.03)


def test_there_are_draws_enough_for_alpha():
    assert [draws_for(alpha) for alpha in (0.05, 0.025, 0.01, 0.005, 0.001)] == [99, 99, 99, 199, 999]


@pytest.mark.parametrize("structure", ["pairs", "whole groups", "mixed"])
def test_a_null_passes_falsely_at_most_at_alpha(structure):
    alpha, draws, data_sets = 0.025, 39, 1000
    per_group, positives = {"pairs": (2, 1), "whole groups": (4, None), "mixed": (5, 2)}[structure]
    random = np.random.default_rng(11)
    codes = np.repeat(np.arange(16), per_group)
    groups = tuple(f"g{code:02d}" for code in codes)
    labels = codes % 2 == 0 if positives is None else np.tile(np.arange(per_group) < positives, 16)
    p = np.empty(data_sets)
    for index in range(data_sets):
        common = random.standard_normal((2, 16, 6))
        fit, test = (3 * common[which][codes] + random.standard_normal((len(codes), 6)) for which in (0, 1))
        fitter = DifferenceOfMeans(fit)
        observed, *null = rankdata(fitter.fit(np.vstack([labels, shuffle(labels, groups, draws, random)])).scores(test), axis=1)[:, labels].sum(axis=1)
        p[index] = Null("shuffled labels", tuple(null), observed, alpha).p
    for level in (alpha, 0.1, 0.5):
        assert (p <= level).mean() <= level + 2 * np.sqrt(level * (1 - level) / data_sets)
    assert (p <= 0.5).mean() >= 0.4
