"""Which of many scores separate two classes: found on one half of the prompts with the false discovery rate held, confirmed on the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, rankdata, t

from mi_audit.detectors.controls import shuffle
from mi_audit.errors import DetectorError
from mi_audit.stats.checks import Bools, Floats

DRAWS: Final = 499
"""Shuffles of the labels from which the spread of each score's AUROC under the null is taken."""
CONFIRMING: Final = 3999
"""Shuffles against which a candidate is held on the other half, at least: p = (k + 1) / (B + 1)."""
EXPECTED: Final = 10
"""Prompts of the rarer class in which a column that has nothing to do with the labels is expected to be above 0, from which its AUROC counts as normal."""

Ints = NDArray[np.int64]


def aurocs(values: Floats, labels: Bools) -> Floats:
    """The AUROC [B, d] of every column of `values` [n, d] for every labelling [B, n]; ties count one half."""
    ranks = rankdata(values, axis=0)
    positives = labels.sum(axis=1).astype(np.float64)[:, None]
    negatives = labels.shape[1] - positives
    found: Floats = (labels.astype(np.float64) @ ranks - positives * (positives + 1) / 2) / (positives * negatives)
    return found


@dataclass(frozen=True, eq=False)
class Candidates:
    """Columns that separate the classes, best first: `columns` [m], their `aurocs` and `q`, the false discovery rate at which each is in."""

    columns: Ints
    aurocs: Floats
    q: Floats


def discover(values: Floats, labels: Bools, groups: tuple[str, ...], *, rate: float, random: np.random.Generator) -> Candidates:
    """The columns of `values` [n, d] that are higher where labels are true than labels shuffled within their structure explain.

    Of each column its AUROC is held against the mean and the spread of `DRAWS` shuffles: by Student's t where it is above 0 in so many prompts that
    `EXPECTED` of each class are among them; of rarer columns, whose AUROCs are skewed and take few values, by its rank among all shuffles of columns that are
    as rare. The p-values are corrected by Benjamini & Hochberg (1995). Groups are shuffled as `controls.shuffle` says, so n is counted in groups.

    Raises:
        DetectorError: one class only, or one group of each at most, so that nothing can be shuffled.
    """
    if labels.all() or not labels.any():
        raise DetectorError("the prompts to discover on are all of one class; give a suite that holds both in its train split")
    null = aurocs(values, shuffle(labels, groups, DRAWS, random))
    own = aurocs(values, labels[None])[0]
    spread = null.std(axis=0, ddof=1)
    if not spread.any():
        raise DetectorError("no shuffle of the labels changes anything: the classes are one group each, or no latent fires; give more groups")
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(spread > 0, spread * np.sqrt(1 + 1 / DRAWS), np.inf)
    statistic, shuffled = (own - null.mean(axis=0)) / scale, (null - null.mean(axis=0)) / scale
    p = t.sf(statistic, DRAWS - 1)
    fires = (values != 0).sum(axis=0)
    share = min(labels.mean(), 1 - labels.mean())
    rare = (fires > 0) & (fires * share < EXPECTED)
    for alike in (rare & (np.log2(np.maximum(fires, 1)).astype(int) == octave) for octave in range(int(np.log2(len(values))) + 1)):
        drawn = np.sort(shuffled[:, alike], axis=None)
        p[alike] = (1 + len(drawn) - np.searchsorted(drawn, statistic[alike] - 1e-9)) / (1 + len(drawn))
    q = false_discovery_control(p, method="bh")
    order = np.lexsort((-own, p))
    chosen = order[q[order] <= rate]
    return Candidates(chosen.astype(np.int64), own[chosen], q[chosen])


@dataclass(frozen=True, eq=False)
class Confirmation:
    """Of candidates [m], on prompts that took no part in finding them: their `aurocs`, `p` against shuffled labels, and whether they are `confirmed`."""

    aurocs: Floats
    p: Floats
    confirmed: Bools


def confirm(values: Floats, labels: Bools, groups: tuple[str, ...], *, alpha: float, random: np.random.Generator) -> Confirmation:
    """Hold candidates, the columns of `values` [n, m], against shuffled labels once more; by Holm (1979) none is wrongly confirmed at 1 − alpha.

    Raises:
        DetectorError: one class only.
    """
    if labels.all() or not labels.any():
        raise DetectorError("the prompts to confirm on are all of one class; give a suite that holds both in its test split")
    own = aurocs(values, labels[None])[0]
    draws = max(CONFIRMING, int(np.ceil(4 * values.shape[1] / alpha)))  # so that Holm's first step can be reached, with room
    reached = np.zeros(values.shape[1])
    for start in range(0, draws, CONFIRMING):
        null = aurocs(values, shuffle(labels, groups, min(CONFIRMING, draws - start), random))
        reached += (null >= own - 1e-12).sum(axis=0)
    p: Floats = (1 + reached) / (draws + 1)
    return Confirmation(own, p, holm(p, alpha))


def holm(p: Floats, alpha: float) -> Bools:
    """Which hypotheses are rejected at a family-wise error of alpha (Holm 1979, Scand. J. Stat. 6)."""
    order = np.argsort(p, kind="stable")
    steps = p[order] <= alpha / (len(p) - np.arange(len(p)))
    rejected = np.zeros(len(p), dtype=np.bool_)
    rejected[order] = np.cumprod(steps).astype(np.bool_)
    return rejected


def rank(own: float, drawn: Sequence[float] | Floats) -> float:
    """p = (k + 1) / (B + 1) of a number among B that were drawn under the null."""
    others = np.asarray(drawn)
    return float((1 + (others >= own - 1e-12).sum()) / (len(others) + 1))
