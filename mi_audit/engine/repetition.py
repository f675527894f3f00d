"""How much a text repeats itself: what a model that is steered too hard does (Welleck et al. 2020, arXiv 1908.04319, seq-rep-4)."""

from collections.abc import Sequence
from typing import Final

TOKENS: Final = 4


def repetition(ids: Sequence[int]) -> float:
    """The share of a text's runs of four tokens that occurred before in it, 0 to 1; 0 for a text too short for any."""
    runs = [tuple(ids[start : start + TOKENS]) for start in range(len(ids) - TOKENS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
