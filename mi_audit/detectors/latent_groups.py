"""Which latents together separate the labels: forward selection of latents whose sum is scored, its length by cross-validation over groups. No torch.

Sparse probing (Gurnee et al. 2023, arXiv 2305.01610) with weights of one, so that a group is what `mi.latent_group` reads.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mi_audit.detectors.discovery import aurocs
from mi_audit.stats.checks import Bools, Floats

MOST: Final = 16
"""Latents of a group; at most half of those that there are."""
POOL: Final = 200
"""Latents from which a group is put together: those that separate the labels best alone."""
FOLDS: Final = 5


def grow(values: Floats, labels: Bools, groups: NDArray[np.str_], random: np.random.Generator) -> tuple[int, ...]:
    """The columns of `values` [n, d] that are added up, the most useful first; how many is what does best on groups that took no part in choosing them.

    `random` decides the folds, in which groups of one class are spread evenly. Where too few groups hold each class to leave some out, it is the best column
    alone.
    """
    most = min(MOST, max(1, values.shape[1] // 2))
    names, number = np.unique(groups, return_inverse=True)
    share = np.bincount(number, weights=labels) / np.bincount(number)
    names = names[np.lexsort((random.permutation(len(names)), share > 0, share < 1))]
    folds = [np.isin(groups, names[start::FOLDS]) for start in range(min(FOLDS, len(names)))]
    usable = [apart for apart in folds if _both(labels[apart]) and _both(labels[~apart])]
    if not usable:
        return _path(values, labels, 1)
    held = np.zeros((len(usable), most))
    for row, apart in enumerate(usable):
        path = _path(values[~apart], labels[~apart], most)
        sums = values[apart][:, list(path)].cumsum(axis=1)
        found = aurocs(sums, labels[None, apart])[0]
        held[row] = [*found, *[found[-1]] * (most - len(found))]
    return _path(values, labels, int(held.mean(axis=0).argmax()) + 1)


def _path(values: Floats, labels: Bools, most: int) -> tuple[int, ...]:
    """Columns, each the one whose addition to those before gives the highest AUROC; it ends where none gives a higher one."""
    alone = aurocs(values, labels[None])[0]
    pool: NDArray[Any] = np.argsort(-alone, kind="stable")[:POOL]
    chosen: list[int] = []
    summed, best = np.zeros(len(values)), 0.5
    while len(chosen) < most:
        found = aurocs(summed[:, None] + values[:, pool], labels[None])[0]
        found[np.isin(pool, chosen)] = 0
        place = int(found.argmax())
        if chosen and found[place] <= best:
            break
        best, summed = float(found[place]), summed + values[:, pool[place]]
        chosen.append(int(pool[place]))
    return tuple(chosen)


def _both(labels: Bools) -> bool:
    return bool(labels.any() and not labels.all())
