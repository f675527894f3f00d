"""What an experiment gave."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from mi_audit.causal.handles import Handle, Vectors
from mi_audit.plan.places import At
from mi_audit.plan.steering import SteerSpec
from mi_audit.stats.checks import Floats
from mi_audit.stats.controls import draws_needed
from mi_audit.stats.dose import Dose, contrasts_of
from mi_audit.suites.suite import Suite

if TYPE_CHECKING:
    from mi_audit.causal.tasks import Asked

IDLE: Final = 1e-3
"""Of the mean change of the effect, up to which a draw of a null changes nothing but by rounding."""


@dataclass(frozen=True)
class Written:
    """What the model wrote after a prompt, at a strength (None: as it is)."""

    prompt: str
    strength: float | None
    text: str


@dataclass(frozen=True)
class Layer:
    """The same experiment at another layer: the effect [S, n] at each strength."""

    at: At
    values: Floats


@dataclass(frozen=True, eq=False)
class ExperimentData:
    """An experiment on the n prompts of `suite` (what was taken of it, after any limit).

    Attributes:
        spec: what was asked for.
        suite: its prompts.
        handle: what was pushed on.
        strengths: those that were measured, S of them, ascending; the others are in `failed`.
        unsteered: the effect [n] of the model as it is.
        values: the effect [S, n] with the change.
        nulls: for each null, of its draws [B, S, n].
        direct: the effect [S, n] where the vector is added behind the last block; None where that is not defined.
        failed: why nothing was measured at a strength.
        passed: how it was computed.
        written: texts after a few prompts.
        profile: other layers.
        error: why it was not finished; `nulls` and what comes after them may then be missing.
        asked: the prompts as they passed through the model.
    """

    spec: SteerSpec
    suite: Suite
    handle: Handle
    strengths: tuple[float, ...]
    unsteered: Floats
    values: Floats
    nulls: Mapping[str, Floats]
    direct: Floats | None
    failed: Mapping[float, str]
    passed: str
    written: tuple[Written, ...] = ()
    profile: tuple[Layer, ...] = ()
    error: str | None = None
    asked: "Sequence[Asked]" = ()

    @property
    def dose(self) -> Dose:
        """For the estimates."""
        return self.dose_of(self.values)

    def moved(self, quantity: str, strength: float | None) -> Floats:
        """How far each prompt's effect moves [n]: at a strength, or per unit of strength, by least squares; of a reversal, between both ends."""
        shifts = self.values - self.unsteered
        if strength is not None:
            return np.asarray(shifts[self.strengths.index(strength)])
        if quantity == "sign_reversal":
            return np.asarray(shifts[-1] - shifts[0])
        (weights,) = contrasts_of("slope", self.strengths, None, self.spec.origin)
        return np.asarray(weights @ shifts)

    def active(self, name: str) -> Floats:
        """The draws of a null that control something [b, S, n]. Latents that are silenced where they never fire change nothing and do not: none of them is
        counted among those that a claim beats. A direction that changes nothing is as good a control as any."""
        draws = self.nulls[name]
        if isinstance(self.handle, Vectors):
            return draws
        own = np.abs(self.values - self.unsteered).mean()
        return np.asarray(draws[np.abs(draws - self.unsteered).mean(axis=(1, 2)) > IDLE * own])

    def idle_nulls(self, alpha: float) -> tuple[str, ...]:
        """Of which nulls so many draws change nothing that the others are too few for alpha."""
        active = {name: len(self.active(name)) for name in self.nulls}
        return tuple(
            f"{len(draws) - active[name]} of the {len(draws)} {name} that it is held against change nothing on these prompts, and of those that do it takes"
            f" {draws_needed(alpha)}"
            for name, draws in self.nulls.items()
            if active[name] < draws_needed(alpha)
        )

    def dose_of(self, values: Floats) -> Dose:
        """As `dose`, of other effects [S, n] on the same prompts."""
        return Dose(values, self.unsteered, self.strengths, self.suite.groups(), self.spec.origin)
