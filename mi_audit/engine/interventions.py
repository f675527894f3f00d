"""Interventions: pure functions that make a new activation [R, L, width] float32 of the one that stands at a hook point, token by token.

Which tokens are touched is not theirs to say (`engine.intervening`). None keeps anything from one call to the next, none changes what it is given.
"""

from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import torch
from torch import Tensor

from mi_audit.errors import DetectorError, HookPointError

Strengths = float | Tensor
"""One number for all rows of a batch, or one for each [R]."""

_OWN_SHARE: Final = 1e-5
"""A direction of which less than this share of its length is its own is a combination of those before it."""


class Intervention(Protocol):
    """Makes a new activation of the one that stands at a hook point."""

    @property
    def width(self) -> int | None:
        """How many numbers per token it is made for; None where any number will do."""

    def __call__(self, acts_RLD: Tensor) -> Tensor:
        """From the activation [R, L, width] to what takes its place, of the same shape and type, on the same device.

        Raises:
            HookPointError: it does not fit the activation: another width, another number of rows or tokens.
        """


@dataclass(frozen=True, eq=False)
class Add:
    """Activation addition (Turner et al., arXiv 2308.10248; contrastive: Rimsky et al., arXiv 2312.06681): h + α·v, with v [width], or [R, width] for each
    row, in one of three units.

    "vector": v as it is. "norm": ‖h‖·v/‖v‖, so that α is what is added as a share of each token's own activation. A number s: s·v/‖v‖, such as the standard
    deviation of a detector's scores along v.

    Raises:
        DetectorError: a number that is not finite, a vector of length 0 whose unit needs a direction, or a unit that is none of these.
    """

    vector: Tensor
    strengths: Strengths
    unit: Literal["vector", "norm"] | float = "vector"

    def __post_init__(self) -> None:
        require_finite("what is added", self.vector)
        require_finite("its strength", self.strengths)
        if self.vector.dim() not in (1, 2):
            raise DetectorError(f"what is added is one vector, or one for each row, not a tensor of shape {tuple(self.vector.shape)}")
        if self.unit not in ("vector", "norm") and (isinstance(self.unit, str) or not 0 < self.unit < float("inf")):
            raise DetectorError(f"the unit {self.unit!r} of a strength is neither 'vector' nor 'norm' nor a number above 0")
        if self.unit != "vector" and not self.vector.any(dim=-1).all():
            raise DetectorError("what is added is a vector of length 0, which has no direction: fit the detector again, or add another")

    @property
    def width(self) -> int:
        """That of the vector."""
        return self.vector.shape[-1]

    def __call__(self, acts_RLD: Tensor) -> Tensor:
        """h + α·v. Raises HookPointError: another width, or another number of rows than of strengths or vectors."""
        require_width(self, acts_RLD)
        strengths_R11 = per_row(self.strengths, acts_RLD)
        vector_R1D = self.vector.to(acts_RLD).reshape(-1, 1, self.width)
        if self.vector.dim() == 2:
            require_rows("vectors", self.vector, acts_RLD)
        if self.unit == "vector":
            return acts_RLD + strengths_R11 * vector_R1D
        length: Tensor | float = torch.linalg.vector_norm(acts_RLD, dim=-1, keepdim=True) if isinstance(self.unit, str) else self.unit
        direction_R1D: Tensor = vector_R1D / torch.linalg.vector_norm(vector_R1D, dim=-1, keepdim=True)
        return acts_RLD + strengths_R11 * length * direction_R1D


@dataclass(frozen=True, eq=False)
class Scale:
    """c·h. Raises DetectorError for a factor that is not finite."""

    factor: Strengths
    width: None = field(default=None, init=False)

    def __post_init__(self) -> None:
        require_finite("the factor", self.factor)

    def __call__(self, acts_RLD: Tensor) -> Tensor:
        """c·h. Raises HookPointError: another number of rows than factors."""
        return acts_RLD * per_row(self.factor, acts_RLD)


@dataclass(frozen=True, eq=False)
class Replace:
    """Activation patching (Zhang & Nanda, arXiv 2309.16042; Heimersheim & Nanda, arXiv 2404.15255): other activations in place of h, the same for every token
    [width] or each its own [R, L, width].

    Raises:
        DetectorError: a number that is not finite, or values of another shape than these two.
    """

    values: Tensor

    def __post_init__(self) -> None:
        require_finite("what is put in", self.values)
        if self.values.dim() not in (1, 3):
            raise DetectorError(f"what is put in has the shape {tuple(self.values.shape)}, which is neither [width] nor [rows, tokens, width]")

    @property
    def width(self) -> int:
        """That of the values."""
        return self.values.shape[-1]

    def __call__(self, acts_RLD: Tensor) -> Tensor:
        """The values. Raises HookPointError: another width, or other rows or tokens."""
        require_width(self, acts_RLD)
        if self.values.dim() == 3 and self.values.shape != acts_RLD.shape:
            raise HookPointError(f"activations of shape {tuple(self.values.shape)} can't take the place of those of shape {tuple(acts_RLD.shape)}")
        return self.values.to(acts_RLD).expand_as(acts_RLD)


@dataclass(frozen=True, eq=False)
class Ablate:
    """Ablation: h is taken away, and in its place stands nothing (zero ablation), a mean [width] (mean ablation; Wang et al., arXiv 2211.00593), or what
    stands there on other prompts [R, L, width] (resample ablation; Chan et al. 2022, causal scrubbing).

    Zeros are far from what a model is used to and flatter what they are compared with.

    Raises:
        DetectorError: as `Replace`.
    """

    by: Tensor | None = None
    _values: Replace | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_values", None if self.by is None else Replace(self.by))

    @property
    def width(self) -> int | None:
        """That of what stands in its place; any for zeros."""
        return None if self._values is None else self._values.width

    def __call__(self, acts_RLD: Tensor) -> Tensor:
        """What stands in its place. Raises HookPointError: another width, or other rows or tokens."""
        return torch.zeros_like(acts_RLD) if self._values is None else self._values(acts_RLD)


@dataclass(frozen=True, eq=False)
class ProjectOut:
    """Directional ablation (Arditi et al., arXiv 2406.11717): h − s·QᵀQh, with the rows of Q [k, width] an orthonormal basis of the directions
    [k, width], or [R, k, width] for each row, and s the share that is taken out, all of it by default.

    A model can write a direction again after it was taken out: take it out of all that writes to the residual stream (`embed`, every `attn_out` and `mlp_out`;
    where a norm follows these, of Gemma 2 and 3 and OLMo 2, the hook points stand after it, so its gain can't bring the direction back).

    Raises:
        DetectorError: a number that is not finite, or a direction, which is named, of length 0 or that is a combination of those before it.
    """

    directions: Tensor
    share: Strengths = 1.0
    basis: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_finite("a direction", self.directions)
        require_finite("the share that is taken out", self.share)
        if self.directions.dim() not in (2, 3) or not self.directions.numel():
            raise DetectorError(
                f"directions are the rows of a matrix [k, width], or of one for each row of a batch, not a tensor of shape {tuple(self.directions.shape)}"
            )
        object.__setattr__(self, "basis", _orthonormal(self.directions))

    @property
    def width(self) -> int:
        """That of the directions."""
        return self.directions.shape[-1]

    def __call__(self, acts_RLD: Tensor) -> Tensor:
        """h − s·QᵀQh. Raises HookPointError: another width, or another number of rows than of directions or shares."""
        require_width(self, acts_RLD)
        if self.directions.dim() == 3:
            require_rows("directions", self.directions, acts_RLD)
        basis = self.basis.to(acts_RLD)
        return acts_RLD - per_row(self.share, acts_RLD) * ((acts_RLD @ basis.mT) @ basis)


def require_finite(what: str, values: Strengths) -> None:
    """Raises DetectorError where a number is not finite; `what` begins the message."""
    if not torch.isfinite(torch.as_tensor(values)).all():
        raise DetectorError(f"{what} holds a number that is not finite: fit or capture it again, in float32 if it was in float16")


def require_width(intervention: Intervention, acts_RLD: Tensor) -> None:
    """Raises HookPointError where an activation has another width than the one that the intervention is made for."""
    if intervention.width != acts_RLD.shape[-1]:
        raise HookPointError(f"{type(intervention).__name__} is made for {intervention.width} numbers per token, and {acts_RLD.shape[-1]} stand there")


def require_rows(what: str, given: Tensor, acts_RLD: Tensor) -> None:
    """Raises HookPointError where what is given for each row is given for another number of them than the activation has."""
    if len(given) != len(acts_RLD):
        raise HookPointError(f"{what} for {len(given)} rows in a batch of {len(acts_RLD)}")


def per_row(numbers: Strengths, acts_RLD: Tensor) -> Tensor:
    """One number for all rows, or one for each, where the activation is, [1 or R, 1, 1]. Raises HookPointError: another number of them than rows."""
    given = torch.as_tensor(numbers).to(acts_RLD)
    if given.dim() > 1 or (given.dim() == 1 and len(given) != len(acts_RLD)):
        raise HookPointError(f"strengths of shape {tuple(given.shape)} for a batch of {len(acts_RLD)} rows: give one number, or one for each row")
    return given.reshape(-1, 1, 1)


def _orthonormal(directions: Tensor) -> Tensor:
    """An orthonormal basis [..., k, width] float32 of the space that the directions [..., k, width] span, for each row of a batch."""
    rows = directions.to("cpu", torch.float64)
    norms = rows.norm(dim=-1)
    if not norms.all():
        raise DetectorError(f"{_named((norms == 0).nonzero()[0])} has length 0: leave it out")
    # of direction i the diagonal of R holds what is left of it once those before it are taken out; past the width nothing is left of any
    Q, R = torch.linalg.qr((rows / norms[..., None]).mT)
    own = torch.zeros_like(norms)
    own[..., : R.shape[-2]] = R.diagonal(dim1=-2, dim2=-1).abs()
    if not (own >= _OWN_SHARE).all():
        raise DetectorError(f"{_named((own < _OWN_SHARE).nonzero()[0])} is a combination of those before it: leave it out")
    basis: Tensor = Q.mT.to(torch.float32)
    return basis


def _named(index: Tensor) -> str:
    *row, number = index.tolist()
    return f"direction {number} of row {row[0]}" if row else f"direction {number}"
