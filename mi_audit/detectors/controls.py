"""Detectors that have nothing to find: fitted to shuffled labels, or drawn at random where the activations vary."""

import hashlib
import math
from typing import Final

import numpy as np

from mi_audit.detectors.linear import Directions
from mi_audit.stats.checks import Bools, Floats

SHUFFLED: Final = "shuffled labels"
RANDOM: Final = "random directions"
ISOTROPIC: Final = "isotropic directions"

LEAST_DRAWS: Final = 99


def draws_for(alpha: float) -> int:
    """How many draws a null takes: 99, or as many as p = (k + 1)/(B + 1) needs to reach alpha."""
    return max(LEAST_DRAWS, math.ceil(1 / alpha - 1 - 1e-9))


def stream(seed: int, *key: str) -> np.random.Generator:
    """Random numbers that depend on the run's seed and the key alone, not on what was drawn before."""
    digest = hashlib.sha256("\n".join(key).encode()).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, int.from_bytes(digest)]))


def shuffle(labels: Bools, groups: tuple[str, ...], draws: int, random: np.random.Generator) -> Bools:
    """Labellings [draws, n] that keep the structure of `labels` [n], for a null in which labels are exchangeable within it.

    In a group that holds both classes its labels are permuted (for a pair: flipped or not); the labels of groups that hold one class are permuted among those
    groups, whole (Hewitt & Liang 2019, arXiv 1909.03368: a control task randomises per type, not per row).
    """
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    count = codes.max() + 1
    positives, sizes = np.bincount(codes, weights=labels, minlength=count), np.bincount(codes, minlength=count)
    mixed = (positives > 0) & (positives < sizes)
    by_group = np.argsort(codes, kind="stable")
    shuffled = np.empty((draws, len(labels)), dtype=np.bool_)
    within = np.argsort(codes + random.random((draws, len(labels))), axis=1)
    np.put_along_axis(shuffled, within, np.broadcast_to(labels[by_group], shuffled.shape), axis=1)
    pure = np.flatnonzero(~mixed)
    order = np.argsort(random.random((draws, len(pure))), axis=1)
    of_group = np.zeros((draws, count), dtype=np.bool_)
    of_group[:, pure] = (positives[pure] > 0)[order]
    return np.where(mixed[codes], shuffled, of_group[:, codes])


def random_directions(acts: Floats, labels: Bools, like: Directions, draws: int, random: np.random.Generator) -> Directions:
    """Directions drawn from a normal distribution with the covariance of activations [n, d] within their classes, centred and as long as the one in `like`.

    Isotropic directions would be a weak null: activations vary in few directions, and those are the ones that score. The classes' means are taken out first:
    where the classes differ much, directions with the total covariance point along that difference and are no null of it.
    """
    within = acts - np.where(labels[:, None], _mean(acts[labels]), _mean(acts[~labels]))
    weights = random.standard_normal((draws, len(acts))) @ within
    weights *= np.linalg.norm(like.weights) / np.linalg.norm(weights, axis=1, keepdims=True)
    return Directions(like.mean, weights, np.repeat(like.intercepts, draws))


def _mean(acts: Floats) -> Floats:
    """The mean [d] of activations [n, d]; of a class without any it is never used."""
    return acts.mean(axis=0) if len(acts) else np.zeros(acts.shape[1])
