"""Sweeps of strengths: how an effect answers to the dose, and by how much beyond what null directions do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

import numpy as np

from mi_audit.errors import StatisticsError
from mi_audit.stats.checks import Floats, checked_alpha
from mi_audit.stats.controls import Null
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.limits import MOST_PARTS
from mi_audit.stats.means import METHOD, mean

EffectQuantity = Literal["slope", "change", "smallest_step", "sign_reversal"]

_TIE: Final = 1e-5
"""Of the mean size of a change: a draw that is the detector itself, as a shuffle of few labels can be, is measured in another batch and differs in float32."""


class Saturation(NamedTuple):
    """Per sign of the strength: 1 where the effect grows as fast in the outer half as in the inner one, 0 where it grows no more; None where unknown."""

    negative: float | None
    positive: float | None


@dataclass(frozen=True, eq=False)
class Dose:
    """The effect on each of n prompts, at each of S strengths and without steering.

    Args:
        values: [S, n].
        unsteered: [n], the effect of the same prompts as they are.
        strengths: [S], ascending; none of them 0 where `origin`.
        groups: [n], the names of the clusters that the prompts come in.
        origin: whether `unsteered` is the effect at strength 0: so for an addition; not for a clamp, where a latent held at 0 is not one left alone.
    """

    values: Floats
    unsteered: Floats
    strengths: tuple[float, ...]
    groups: Sequence[str]
    origin: bool

    def __post_init__(self) -> None:
        _checked_strengths(self.strengths, self.origin)
        _checked("unsteered", self.unsteered, (len(self.groups),))
        _checked("values", self.values, (len(self.strengths), len(self.groups)))

    def estimate(self, quantity: EffectQuantity, strength: float | None = None, *, alpha: float = 0.025) -> Estimate:
        """A quantity of the effect.

        - "slope": the mean over prompts of the least-squares slope of the effect on the strength;
        - "change": the mean of the effect at `strength` less that without steering;
        - "smallest_step": the smallest mean rise from one strength to the next: above 0 the effect rises all the way;
        - "sign_reversal": the smaller of the change at the highest strength and minus the change at the lowest: above 0 the handle works both ways.

        The last two are the least of several means. The lower bound is the least of their lower bounds, each at `alpha`: it is above the truth only where
        that of the least mean is (intersection–union, Berger 1982, Technometrics 24). The upper bound is the least of their upper bounds, alpha split evenly.

        Raises:
            StatisticsError: the strengths do not show the quantity, or there are fewer than two groups.
        """
        return self._least(quantity, strength, self.values - self.unsteered, alpha)

    def excess(self, quantity: EffectQuantity, null: Floats, strength: float | None = None, *, alpha: float = 0.025) -> Estimate:
        """The same, in excess of the null: each prompt's contrast less the mean of its contrasts over B draws, whose effects are `null` [B, S, n].

        How much draws differ among themselves is no part of the interval: that is what their rank is for (`null`).

        Raises:
            StatisticsError: as `estimate`, or the draws do not fit the sweep.
        """
        self._checked_draws(null)
        estimate = self._least(quantity, strength, self.values - null.mean(axis=0), alpha)
        return replace(estimate, excess=True, method=f"{estimate.method}; in excess of the mean of {len(null)} null draws, prompt by prompt")

    def null(self, name: str, quantity: EffectQuantity, null: Floats, strength: float | None = None, *, alpha: float = 0.025, decides: bool = True) -> Null:
        """The quantity's rank among B draws, whose effects are `null` [B, S, n]. A draw within float32's rounding of what was observed is a tie with it.

        Raises:
            StatisticsError: as `excess`.
        """
        self._checked_draws(null)
        (observed,) = statistic_of(quantity, self.values[None], self.unsteered, self.strengths, strength, self.origin)
        drawn = statistic_of(quantity, null, self.unsteered, self.strengths, strength, self.origin)
        sizes = np.abs(contrasts_of(quantity, self.strengths, strength, self.origin)) @ np.abs(self.values - self.unsteered).mean(axis=-1)
        drawn[np.abs(drawn - observed) <= _TIE * sizes.max()] = observed
        return Null(name, tuple(drawn.tolist()), float(observed), alpha, decides)

    def saturation(self) -> Saturation:
        """`saturation` of the sweep; unknown where it has no effect at strength 0."""
        return saturation(self.values, self.unsteered, self.strengths) if self.origin else Saturation(None, None)

    def _checked_draws(self, null: Floats) -> None:
        if np.ndim(null) != 3 or not len(null):
            raise StatisticsError(f"The effects of null draws must be [draws, strengths, prompts], got shape {np.shape(null)}.")
        _checked("the effects of null draws", null, (len(null), *self.values.shape))

    def _least(self, quantity: EffectQuantity, strength: float | None, shifts: Floats, alpha: float) -> Estimate:
        """The least mean of the quantity's contrasts of `shifts` [S, n]."""
        contrasts = contrasts_of(quantity, self.strengths, strength, self.origin) @ shifts
        parts = [mean(contrast, self.groups, alpha=checked_alpha(alpha), quantity=quantity) for contrast in contrasts]
        if len(parts) == 1:
            return parts[0]
        split = [mean(contrast, self.groups, alpha=alpha / len(parts), quantity=quantity) for contrast in contrasts]
        reasons = [reason for part in parts for reason in part.undecided]
        if len(parts) > MOST_PARTS:
            reasons.append(f"{len(parts)} steps: the interval of {quantity} is validated up to {MOST_PARTS}")
        return replace(
            min(parts, key=lambda part: part.value),
            low=min(part.low for part in parts),
            high=min(part.high for part in split),
            method=f"{METHOD}; least of {len(parts)} means: lower bound by intersection–union, upper by Bonferroni",
            undecided=tuple(dict.fromkeys(reasons)),
        )


def contrasts_of(quantity: EffectQuantity, strengths: Sequence[float], strength: float | None, origin: bool) -> Floats:
    """The quantity is the least of the means of `contrasts @ shifts`: weights [contrasts, S] of what each strength shifts the effect by, [S, n].

    Raises:
        StatisticsError: the strengths do not show the quantity, or `strength` is none of them, is missing, or has nothing to say.
    """
    if (quantity == "change") != (strength is not None):
        raise StatisticsError(f"A change is that at one strength, and no other quantity is: got {quantity} with strength {strength!r}.")
    doses, each = np.array(strengths, dtype=np.float64), np.eye(len(strengths))
    if quantity == "change":
        if strength not in strengths:
            raise StatisticsError(f"There is no strength {strength!r} in the sweep: use one of {', '.join(f'{dose:g}' for dose in strengths)}.")
        return np.asarray(each[doses == strength])
    if quantity == "sign_reversal":
        if not doses[0] < 0.0 < doses[-1]:
            raise StatisticsError("A sign reversal needs strengths of both signs: add negative ones, or positive ones, to the sweep.")
        return np.stack([each[-1], -each[0]])
    if origin:
        place = int(np.searchsorted(doses, 0.0))
        doses, each = np.insert(doses, place, 0.0), np.insert(each, place, 0.0, axis=0)
    if len(doses) < 2:
        raise StatisticsError(f"The {quantity.replace('_', ' ')} needs two strengths: there is one, and without steering is not strength 0 here. Add another.")
    if quantity == "smallest_step":
        return np.diff(each, axis=0)
    centred = doses - doses.mean()
    return np.asarray((centred / (centred @ centred))[None] @ each)


def statistic_of(quantity: EffectQuantity, values: Floats, unsteered: Floats, strengths: Sequence[float], strength: float | None, origin: bool) -> Floats:
    """The quantity's value, without an interval, for each of B directions: [B], from effects `values` [B, S, n] on prompts that have `unsteered` [n].

    Raises:
        StatisticsError: as `contrasts_of`.
    """
    shifts = (values - unsteered).mean(axis=-1)
    return np.asarray((shifts @ contrasts_of(quantity, strengths, strength, origin).T).min(axis=-1))


def saturation(values: Floats, unsteered: Floats, strengths: Sequence[float]) -> Saturation:
    """The slope of the mean effect over the outer half of the strengths of a sign, over that of the inner half, which starts unsteered at 0.

    The halves meet at the strength that is nearest to half the largest. A description without an interval; None with fewer than two strengths of the sign, and
    where the change over the inner half is within two standard errors of 0, prompts taken one by one.

    Args:
        values: [S, n].
        unsteered: [n].
        strengths: [S], ascending, none of them 0.
    """
    doses, shifts = np.array(strengths, dtype=np.float64), values - unsteered
    return Saturation(*(_outer_over_inner(way * doses[way * doses > 0.0], shifts[way * doses > 0.0]) for way in (-1.0, 1.0)))


def _outer_over_inner(sizes: Floats, shifts: Floats) -> float | None:
    """`sizes` [S] of the strengths of one sign, and what each shifts, [S, n]."""
    order = np.argsort(sizes)
    sizes, shifts = sizes[order], shifts[order]
    if len(sizes) < 2 or shifts.shape[1] < 2:
        return None
    middle = int(np.argmin(np.abs(sizes[:-1] - sizes[-1] / 2.0)))
    inner, all_of_it = float(shifts[middle].mean()), float(shifts[-1].mean())
    if abs(inner) <= 2.0 * float(shifts[middle].std(ddof=1)) / shifts.shape[1] ** 0.5:
        return None
    return float((all_of_it - inner) / (sizes[-1] - sizes[middle]) / (inner / sizes[middle]))


def _checked_strengths(strengths: Sequence[float], origin: bool) -> None:
    doses = np.asarray(strengths)
    numbers = doses.ndim == 1 and doses.dtype.kind in "fiu" and len(doses) > 0 and bool(np.isfinite(doses).all())
    if not numbers or (np.diff(doses) <= 0).any() or (origin and (doses == 0).any()):
        raise StatisticsError(f"strengths must be finite numbers, ascending and each once, and none of them 0 where that is no steering, got {strengths!r}.")


def _checked(name: str, values: Floats, shape: tuple[int, ...]) -> None:
    array = np.asarray(values)
    if array.shape != shape or array.dtype.kind != "f":
        raise StatisticsError(f"{name} must be floats of shape {shape}, got shape {array.shape} of {array.dtype}.")
    finite = np.isfinite(array)
    if not finite.all():
        place = tuple(int(index) for index in np.argwhere(~finite)[0])
        raise StatisticsError(
            f"{name}[{', '.join(map(str, place))}] is {array[place]}: no quantity is defined on values that are not finite."
            " Lower the strengths, or find where the model or the effect made it."
        )
