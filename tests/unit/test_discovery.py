"""What is found among many scores is there, and nothing is found where nothing is."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from mi_audit.detectors.discovery import aurocs, confirm, discover, holm
from mi_audit.detectors.latent_flags import Firings, absorbed_by, near_duplicates, tracks
from mi_audit.detectors.latent_groups import grow
from mi_audit.errors import DetectorError

N, WIDTH, PLANTED = 240, 400, (3, 77, 210, 399)


def planted(seed, *, shuffled=False):
    """Sparse scores in pairs of prompts, one of each class; the planted ones fire on positives."""
    random = np.random.default_rng(seed)
    labels = np.tile([True, False], N // 2)
    groups = tuple(str(number // 2) for number in range(N))
    values = random.exponential(size=(N, WIDTH)) * (random.random((N, WIDTH)) < random.uniform(0.01, 0.6, WIDTH))
    if not shuffled:
        for latent in PLANTED:
            values[:, latent] = np.where(labels, random.random(N) < 0.6, random.random(N) < 0.1) * random.exponential(size=N)
    return values, labels, groups


def found(seed, *, shuffled=False):
    values, labels, groups = planted(seed, shuffled=shuffled)
    half = np.arange(N) < N // 2
    first, second = (tuple(np.asarray(groups)[rows]) for rows in (half, ~half))
    random = np.random.default_rng(seed)
    candidates = discover(values[half], labels[half], first, rate=0.05, random=random).columns
    if not len(candidates):
        return set()
    return set(candidates[confirm(values[~half][:, candidates], labels[~half], second, alpha=0.025, random=random).confirmed].tolist())


def test_aurocs_are_those_of_mann_and_whitney():
    values, labels, _ = planted(1)
    expected = mannwhitneyu(values[labels], values[~labels], axis=0).statistic / (labels.sum() * (~labels).sum())
    np.testing.assert_allclose(aurocs(values, labels[None])[0], expected, rtol=1e-12)


def test_what_is_planted_is_found_and_nothing_else():
    runs = [found(seed) for seed in range(10)]
    right = sum(len(run & set(PLANTED)) for run in runs)
    assert right / (10 * len(PLANTED)) >= 0.95, "recall"
    assert right / sum(map(len, runs)) >= 0.95, "precision"


def test_nothing_is_found_where_labels_mean_nothing():
    assert sum(not found(seed, shuffled=True) for seed in range(40)) >= 38


@pytest.mark.parametrize(("n", "positives"), [(400, 20), (200, 20), (200, 100)])
def test_rare_scores_are_no_discoveries_where_a_class_is_rare(n, positives):
    """A score above 0 in two prompts, both positive, is far from the mean of shuffled labels and yet not rare among thousands of such scores."""
    found = 0
    for seed in range(4):
        random = np.random.default_rng(seed)
        labels = np.arange(n) < positives
        values = np.zeros((n, 1500))
        for column in range(values.shape[1]):
            rows = random.permutation(n)[: random.integers(1, 9)]
            values[rows, column] = random.exponential(size=len(rows))
        found += len(discover(values, labels, tuple(map(str, range(n))), rate=0.05, random=random).columns) > 0
    assert found <= 1


@pytest.mark.parametrize(("parts", "most"), [(1, 2), (5, 7)])
def test_a_group_grows_as_far_as_the_feature_is_split(parts, most):
    """Each part fires on its share of the positives alone; the other columns mean nothing."""
    random = np.random.default_rng(parts)
    labels = np.tile([True, False], 200)
    values = random.exponential(size=(400, 300)) * (random.random((400, 300)) < 0.05)
    for part in range(parts):
        values[:, 10 * part] = (labels & (np.arange(400) // 2 % parts == part)) + 0.01 * random.random(400)
    group = grow(values, labels, np.array([str(number // 2) for number in range(400)]), random)
    assert {10 * part for part in range(parts)} <= set(group) and len(group) <= most


def test_a_group_of_nothing_is_no_better_held_out():
    """What is put together from noise separates the prompts that it was put together on, and no others."""
    random = np.random.default_rng(0)
    labels, groups = np.tile([True, False], 200), np.array([str(number // 2) for number in range(400)])
    values = random.exponential(size=(400, 300)) * (random.random((400, 300)) < 0.3)
    half = np.arange(400) < 200
    summed = values[:, list(grow(values[half], labels[half], groups[half], random))].sum(axis=1, keepdims=True)
    assert aurocs(summed[half], labels[None, half])[0, 0] > 0.6
    assert not confirm(summed[~half], labels[~half], tuple(groups[~half]), alpha=0.025, random=random).confirmed.any()


def test_confirmation_can_be_reached_by_many():
    random = np.random.default_rng(0)
    labels = np.arange(100) < 50
    values = labels[:, None] + random.random((100, 60))
    assert confirm(values, labels, tuple(map(str, range(100))), alpha=0.001, random=random).confirmed.all()


def test_groups_of_one_class_count_once():
    """A latent that fires in one of six templates is no discovery, however many prompts each has."""
    labels = np.repeat([True, True, True, False, False, False], 40)
    groups = tuple(np.repeat([f"t{number}" for number in range(6)], 40))
    values = np.zeros((240, 50))
    values[:, 0] = labels
    values[:40, 1:] = 1
    assert not len(discover(values, labels, groups, rate=0.05, random=np.random.default_rng(0)).columns)


def test_one_class_is_an_error():
    with pytest.raises(DetectorError, match="all of one class"):
        discover(np.ones((4, 2)), np.ones(4, dtype=bool), ("a", "b", "c", "d"), rate=0.05, random=np.random.default_rng(0))
    with pytest.raises(DetectorError, match="one group each, or no latent fires"):
        discover(np.zeros((4, 2)), np.array([True, False, True, False]), ("a", "b", "c", "d"), rate=0.05, random=np.random.default_rng(0))


def test_holm_stops_at_the_first_that_fails():
    assert holm(np.array([0.012, 0.001, 0.03]), 0.025).tolist() == [True, True, False]
    assert holm(np.array([0.02, 0.02, 0.02]), 0.025).tolist() == [False, False, False]


def test_flags():
    random = np.random.default_rng(0)
    labels = np.arange(60) < 30
    values = np.zeros((60, 4))
    values[:20, 0] = random.random(20) + 0.5  # the parent is silent on a third of the positive prompts
    values[20:30, 1] = 1  # where its child fires
    values[:, 2] = values[:, 0] * 1.1
    cosines = np.array([1.0, 0.4, 0.9, 0.9])
    assert near_duplicates(0, values, cosines) == (2,)
    assert absorbed_by(0, values, labels, cosines) == (1,)
    lengths = np.tile(np.arange(30.0), 2)
    spread = Firings(np.arange(20), np.arange(20))
    assert tracks(values[:, 3], labels, lengths, spread, dense=False) == ()
    said = tracks(lengths, labels, lengths, Firings(np.arange(20), np.full(20, 42)), dense=True)
    assert [part.split(":")[0] for part in said] == ["dense", "tracks length", "tracks one token"]
    assert "at token 0 of a prompt" in tracks(values[:, 3], labels, lengths, Firings(np.zeros(12, dtype=int), np.arange(12)), dense=False)[0]
