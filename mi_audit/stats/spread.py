"""What low precision does to a reading's scores, as plain data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Scores computed in `dtype` were within `delta` (finite, 0 or more) of those in float32, on each of a sample of `n` prompts."""

    dtype: str
    delta: float
    n: int


@dataclass(frozen=True, slots=True)
class Unwidened:
    """The bounds that an estimate has if its scores are taken as exact, and the spread by which they were widened."""

    low: float
    high: float
    spread: Spread

    @property
    def reason(self) -> str:
        """Why a claim that these bounds would decide stays undecided."""
        of = self.spread
        return (
            f"in {of.dtype} scores differ from float32 by up to {of.delta:.3g} on a sample of {of.n} prompts; were they exact, the interval would be"
            f" [{self.low:.4g}, {self.high:.4g}]; run with --audit-dtype float32 to decide"
        )
