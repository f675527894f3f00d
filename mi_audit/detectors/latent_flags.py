"""What is wrong with a latent that separates a suite: it is split or absorbed, dense, or tracks a length, a position or a token. Pure numbers, no torch."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from mi_audit.stats.checks import Bools, Floats

NEAR: Final = 0.7
"""Cosine of decoder rows, and correlation of activations, from which two latents are near-duplicates."""
LENGTH: Final = 0.5
"""Rank correlation with the number of tokens, within the classes, from which a latent tracks length."""
ONE: Final = 0.8
"""Share of its firings at one position, or at one token, from which a latent tracks it."""
FIRINGS: Final = 10
"""Firings below which nothing is said of positions and tokens."""
SILENT: Final = 0.25
"""Share of the positive prompts on which a latent is silent while a relative fires, from which it counts as absorbed."""
RELATIVE: Final = 0.2
"""Cosine of decoder rows from which two latents are relatives."""


@dataclass(frozen=True, eq=False)
class Firings:
    """Of one latent, the tokens of some prompts at which it fires: their `positions` and token `ids`, [f] each."""

    positions: NDArray[np.int64]
    ids: NDArray[np.int64]


def near_duplicates(latent: int, values: Floats, cosines: Floats) -> tuple[int, ...]:
    """Latents that write almost the same direction and fire together with it; `values` [n, d_sae], `cosines` [d_sae] of its decoder row with all."""
    others = [int(other) for other in np.flatnonzero(cosines >= NEAR) if other != latent]
    return tuple(other for other in others if _correlation(values[:, latent], values[:, other]) >= NEAR)


def absorbed_by(latent: int, values: Floats, labels: Bools, cosines: Floats) -> tuple[int, ...]:
    """Relatives that fire on positive prompts exactly where it falls silent (Chanin et al. 2024, arXiv 2409.14507), most such prompts first.

    A relative counts where it alone fires on `SILENT` of the positive prompts, and both fire together less often than that.
    """
    fires = values[labels] > 0
    parent = fires[:, latent]
    alone, together = (fires & ~parent[:, None]).mean(axis=0), (fires & parent[:, None]).mean(axis=0)
    found = np.flatnonzero((alone >= SILENT) & (together < SILENT * alone) & (cosines >= RELATIVE))
    return tuple(int(other) for other in found[np.argsort(-alone[found], kind="stable")] if other != latent)


def tracks(values: Floats, labels: Bools, n_tokens: Floats, firings: Firings, dense: bool) -> tuple[str, ...]:
    """What a latent [n] tracks besides the labels, in words."""
    said = ["dense: it fires at more than a tenth of the tokens of neutral text"] if dense else []
    lengths = _within(values, n_tokens, labels)
    if abs(lengths) >= LENGTH:
        said.append(f"tracks length: rank correlation {lengths:+.2f} with the number of tokens")
    if len(firings.ids) >= FIRINGS:
        position, times = _most(firings.positions)
        if times >= ONE * len(firings.positions):
            said.append(f"tracks position: {times} of its {len(firings.positions)} firings are at token {position} of a prompt")
        token, times = _most(firings.ids)
        if times >= ONE * len(firings.ids):
            said.append(f"tracks one token: {times} of its {len(firings.ids)} firings are at the token {token}")
    return tuple(said)


def _most(numbers: NDArray[np.int64]) -> tuple[int, int]:
    found, times = np.unique(numbers, return_counts=True)
    return int(found[times.argmax()]), int(times.max())


def _within(values: Floats, lengths: Floats, labels: Bools) -> float:
    """Spearman's correlation of both, each less its mean rank in its class."""
    one, other = rankdata(values), rankdata(lengths)
    for flags in (labels, ~labels):
        if flags.any():
            one[flags] -= one[flags].mean()
            other[flags] -= other[flags].mean()
    return _correlation(one, other)


def _correlation(one: Floats, other: Floats) -> float:
    """Pearson's correlation; 0 where either does not vary."""
    a, b = one - one.mean(), other - other.mean()
    lengths = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / lengths if lengths > 0 else 0.0
