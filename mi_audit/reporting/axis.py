"""A linear axis: where a value lies, in percent of the width, and round ticks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from mi_audit.reporting.text import number

LARGEST: Final = 1e150
"""Beyond it nothing is drawn to scale, so that no span overflows."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in percent and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, drawn between `margin` and 100 − `margin` percent."""

    low: float
    high: float
    margin: float = 4.0

    @classmethod
    def over(cls, values: Iterable[float], bounds: tuple[float, float] | None = None) -> Self:
        """An axis that holds all values with a little room, cut off at `bounds`."""
        finite = [value for value in values if abs(value) < LARGEST]
        low, high = min(finite, default=0.0), max(finite, default=1.0)
        room = 0.06 * (high - low) or 0.1 * max(abs(high), 1.0)
        low, high = low - room, high + room
        if bounds is not None:
            low, high = max(low, bounds[0]), min(high, bounds[1])
        return cls(low, high)

    def at(self, value: float) -> float:
        """Place of a value in percent, clipped to the axis."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.margin + (100.0 - 2.0 * self.margin) * min(max(share, 0.0), 1.0), 2)

    def ticks(self, about: int = 5) -> tuple[Tick, ...]:
        """Round values, at most about `about` + 2 of them."""
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / about))
        step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= about)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return tuple(Tick(self.at(index * step), number(round(index * step, 12))) for index in range(first, last + 1))
