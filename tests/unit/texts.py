"""Prompts of random letters for small random models."""

import numpy as np

from mi_audit.suites.prompt import Prompt

LETTERS = np.array(list("abcdefgh "))


def texts(n: int, *, begin: str = "", shortest: int = 4, longest: int = 59, seed: int = 0) -> list[Prompt]:
    """`n` prompts of `begin`, an x, and `shortest` to `longest` letters; the same seed gives the same."""
    rng = np.random.default_rng(seed)
    return [Prompt(f"p{number}", text=begin + "x" + "".join(rng.choice(LETTERS, rng.integers(shortest, longest + 1)))) for number in range(n)]
