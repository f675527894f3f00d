"""What low precision does to a reading's scores, as plain data."""

from dataclasses import dataclass
from typing import Final

LEFT_OUT: Final = 0.1
"""Share of alpha for the chance that more prompts than `Spread.others` differ by more than `delta`; the interval has the rest."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Scores computed in `dtype` were within `delta` (finite, 0 or more) of those in float32, on each of `n` prompts drawn at random from all `of` prompts."""

    dtype: str
    delta: float
    n: int
    of: int

    def others(self, alpha: float) -> int:
        """How many prompts outside the sample may differ by more than `delta`: that there are more has a probability of at most `LEFT_OUT` × alpha.

        Were it m prompts, the m that differ most would all lie outside the sample: of all samples, C(of − m, n) / C(of, n) leave them out.
        """
        others, left_out = 0, (self.of - self.n) / self.of
        while left_out > LEFT_OUT * alpha:
            others += 1
            left_out *= (self.of - self.n - others) / (self.of - others)
        return others

    def level(self, alpha: float) -> float:
        """The level of a bound that together with `others` errs with a probability of at most alpha."""
        return alpha if self.n == self.of else (1.0 - LEFT_OUT) * alpha

    def __str__(self) -> str:
        sample = f"all {self.n}" if self.n == self.of else f"a sample of {self.n} of {self.of}"
        return f"in {self.dtype} scores differ from float32 by up to {self.delta:.3g} on {sample} prompts"


@dataclass(frozen=True, slots=True)
class Unwidened:
    """The bounds that an estimate has if its scores are taken as exact, and by what they were widened: a spread, and prompts that may differ by anything."""

    low: float
    high: float
    spread: Spread
    others: int

    @property
    def reason(self) -> str:
        """Why a claim that these bounds would decide stays undecided."""
        more = f"; at most {self.others} others may differ by more" if self.others else ""
        return f"{self.spread}{more}; were they exact, the interval would be [{self.low:.4g}, {self.high:.4g}]; run with --audit-dtype float32 to decide"
