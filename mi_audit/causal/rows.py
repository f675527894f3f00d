"""What is done to each variant of a prompt: one for each strength of each vector, or of each group of latents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mi_audit.causal.handles import Latents
from mi_audit.engine.interventions import Add, Intervention, ProjectOut
from mi_audit.plan.digest import Json
from mi_audit.plan.places import At
from mi_audit.plan.saes import SaeSpec
from mi_audit.plan.steering import Unit
from mi_audit.saes.clamping import ClampLatent
from mi_audit.stats.checks import Floats


class Rows(Protocol):
    """B vectors or groups, each at S strengths; variant b·S + s is that of vector b at strength s."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """S of them."""

    @property
    def number(self) -> int:
        """B."""

    @property
    def places(self) -> tuple[At, ...]:
        """Where they are applied, their layers absolute."""

    def interventions(self, variants: Tensor) -> Sequence[tuple[At, Intervention]]:
        """What is applied to rows [R] that are these variants."""

    def describe(self) -> Mapping[str, Json]:
        """JSON-ready description, to find again what was measured before."""


@dataclass(frozen=True, eq=False)
class Additions:
    """Vectors [B, width] that are added, in units of themselves or of each token's own length."""

    at: At
    vectors: Floats
    strengths: tuple[float, ...]
    unit: Unit

    @property
    def number(self) -> int:
        """B."""
        return len(self.vectors)

    @property
    def places(self) -> tuple[At, ...]:
        """One."""
        return (self.at,)

    def interventions(self, variants: Tensor) -> Sequence[tuple[At, Intervention]]:
        """See `Rows.interventions`."""
        which, strengths = _split(variants, self.strengths)
        return ((self.at, Add(self._vectors[which], strengths, "norm" if self.unit == "norm" else "vector")),)

    def describe(self) -> Mapping[str, Json]:
        """See `Rows.describe`."""
        return {"add": _digest(self.vectors), "at": self.at.describe(), "strengths": list(self.strengths), "unit": self.unit}

    @cached_property
    def _vectors(self) -> Tensor:
        return torch.from_numpy(self.vectors.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Projections:
    """Directions [B, width] of whose component a share is taken out, at several places."""

    places: tuple[At, ...]
    directions: Floats
    strengths: tuple[float, ...]

    @property
    def number(self) -> int:
        """B."""
        return len(self.directions)

    def interventions(self, variants: Tensor) -> Sequence[tuple[At, Intervention]]:
        """See `Rows.interventions`."""
        which, strengths = _split(variants, self.strengths)
        out = ProjectOut(self._directions[which][:, None], strengths)
        return tuple((at, out) for at in self.places)

    def describe(self) -> Mapping[str, Json]:
        """See `Rows.describe`."""
        return {"project out": _digest(self.directions), "at": [at.describe() for at in self.places], "strengths": list(self.strengths)}

    @cached_property
    def _directions(self) -> Tensor:
        return torch.from_numpy(self.directions.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Clampings:
    """Groups of latents, B of them, set to `values` [m] times the strength; the others keep what they are, and so does the SAE's error."""

    at: At
    sae: SaeSpec
    groups: tuple[Latents, ...]
    values: Floats
    strengths: tuple[float, ...]

    @property
    def number(self) -> int:
        """B."""
        return len(self.groups)

    @property
    def places(self) -> tuple[At, ...]:
        """One."""
        return (self.at,)

    def interventions(self, variants: Tensor) -> Sequence[tuple[At, Intervention]]:
        """See `Rows.interventions`."""
        which, strengths = _split(variants, self.strengths)
        union = tuple(sorted({latent for group in self.groups for latent in group}))
        column = {latent: number for number, latent in enumerate(union)}
        values, chosen = torch.zeros(len(variants), len(union)), torch.zeros(len(variants), len(union), dtype=torch.bool)
        highest = torch.from_numpy(self.values.astype(np.float32))
        for row, group in enumerate(which.tolist()):
            columns = [column[latent] for latent in self.groups[group]]
            values[row, columns], chosen[row, columns] = strengths[row] * highest, True
        return ((self.at, ClampLatent(self.sae, union, values, chosen)),)

    def describe(self) -> Mapping[str, Json]:
        """See `Rows.describe`."""
        groups: list[Json] = [list(group) for group in self.groups]
        return {"clamp": groups, "sae": self.sae.digest, "at": self.at.describe(), "values": _digest(self.values), "strengths": list(self.strengths)}


def _split(variants: Tensor, strengths: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Of variants [R]: which vector each is of, and at which strength."""
    return variants // len(strengths), torch.tensor(strengths, dtype=torch.float32)[variants % len(strengths)]


def _digest(values: Floats) -> str:
    return sha256(np.ascontiguousarray(values, dtype="<f8").tobytes()).hexdigest()
