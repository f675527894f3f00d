"""Which token follows: the most probable, or one drawn by its probability (nucleus sampling: Holtzman et al. 2020, arXiv 1904.09751)."""

from dataclasses import dataclass
from math import isfinite
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mi_audit.engine.batches import Ids

LIKELY: Final = 1e-4
"""Tokens above this probability are sorted first: nearly always the one that is drawn is among them."""


@dataclass(frozen=True)
class Sampling:
    """How texts are generated: at most `max_new_tokens` each; at temperature 0 always the most probable token, of equals the one with the smallest id; else one
    drawn from softmax(logits / temperature), of the most probable tokens that together have a probability of `top_p`.

    Raises:
        ValueError: no token, a temperature below 0 or not finite, a `top_p` outside of 0 < p ≤ 1, a seed below 0.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: a text has one token at least")
        if not isfinite(self.temperature) or self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: it is a number from 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: it is a probability above 0")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: it is a whole number from 0")

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    def stream(self, ids: Ids, variant: int) -> np.random.Generator:
        """The random numbers of one text: its own, whatever else is generated beside it."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(variant, *ids)))

    def draw(self, logits_V: NDArray[np.float64], uniform: float) -> int:
        """The token at which the cumulative probability, from the most probable token on, passes `uniform` [0, 1) × that of all that may be drawn."""
        weights = np.exp((logits_V - logits_V.max()) / self.temperature)
        probabilities = weights / weights.sum()
        ids, reached = _sorted(probabilities, LIKELY)
        if not len(ids) or reached[-1] <= (self.top_p if self.top_p < 1 else uniform):
            ids, reached = _sorted(probabilities, 0.0)
        last = min(int(np.searchsorted(reached, self.top_p)), len(ids) - 1)
        mass = reached[last] if self.top_p < 1 else 1.0
        return int(ids[min(int(np.searchsorted(reached, uniform * mass, side="right")), last)])


def _sorted(probabilities_V: NDArray[np.float64], above: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens of a probability above, the most probable first, of equals the one with the smallest id, and what they and those before them add up to."""
    ids = np.flatnonzero(probabilities_V > above)
    ids = ids[np.argsort(-probabilities_V[ids], kind="stable")]
    return ids, np.cumsum(probabilities_V[ids])
