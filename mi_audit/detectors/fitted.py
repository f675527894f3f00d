"""A detector ready to score: what was learned or read from a file, with its card; saved as safetensors, keyed by (spec, model root)."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeGuard

import numpy as np
from safetensors.numpy import save as to_safetensors

from mi_audit.detectors.files import CARD, read_vectors
from mi_audit.engine.site import Site
from mi_audit.errors import DetectorError
from mi_audit.plan.detectors import DetectorSpec
from mi_audit.plan.digest import Json
from mi_audit.plan.places import At
from mi_audit.stats.checks import Floats

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_FORMAT: Final = 1


@dataclass(frozen=True, eq=False)
class FittedDetector:
    """Scores activations: (x − centre)·weight; it fires strictly above its threshold.

    `weight` and `centre` are [d], `at` the hook point with its absolute layer in the model of that root. `card` says how it came about: what it was fitted to
    (n, groups, positives), the regularisation that was chosen, the rule of the threshold.
    """

    spec: DetectorSpec
    model_root: str
    at: At
    weight: Floats
    centre: Floats
    threshold: float | None
    card: Mapping[str, Json]

    @property
    def site(self) -> Site:
        """Where it reads."""
        return Site(self.at, self.spec.tokens)

    def score_tokens(self, acts: Floats) -> Floats:
        """The scores [L] of the activations [L, d] of tokens."""
        return self.score(acts)

    @property
    def pooling(self) -> Literal["mean"]:
        """How several tokens become one prompt: a linear score of their mean activation is the mean of their scores."""
        return "mean"

    def differentiable(self, device: "torch.device") -> "Callable[[Tensor], Tensor]":
        """From activations [..., d] to scores [...] in float32; gradients go through it."""
        import torch

        weight, centre = (torch.from_numpy(each).to(device, torch.float32) for each in (self.weight, self.centre))
        return lambda acts: (acts - centre) @ weight

    def score(self, acts: Floats) -> Floats:
        """The scores [n] of activations [n, d]."""
        scores: Floats = np.einsum("nd,d->n", acts - self.centre, self.weight)  # unlike a matrix product, equal rows give equal scores to the last bit
        return scores

    def to_bytes(self) -> bytes:
        """A safetensors file: tensors `direction` and `centre`, float64 [d], and the card as canonical JSON in its header. Equal detectors give equal bytes."""
        header: dict[str, Json] = {
            "format": _FORMAT,
            "spec": self.spec.describe(),
            "spec_digest": self.spec.digest,
            "model_root": self.model_root,
            "at": self.at.describe(),
            "threshold": self.threshold,
            "card": dict(self.card),
        }
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        # of a view safetensors would write what lies beside it
        return to_safetensors({"direction": np.ascontiguousarray(self.weight), "centre": np.ascontiguousarray(self.centre)}, {CARD: text})

    def save(self, path: Path) -> None:
        """Write `to_bytes()` to a .safetensors file, whole or not at all.

        Raises:
            DetectorError: the file can't be written.
        """
        try:
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(self.to_bytes())
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise DetectorError(f"{self.spec.name}: {path} can't be written: {error.strerror}; choose another folder") from error


def load(path: Path, spec: DetectorSpec, model_root: str, *, width: int | None = None) -> FittedDetector:
    """Read a detector that was saved for this spec and this model.

    Args:
        path: a file written by `FittedDetector.save`.
        spec: what the detector should be.
        model_root: the root digest of the model under audit.
        width: the width of the hook point, where known.

    Raises:
        DetectorError: no such file, not a saved detector, another spec or model (the message names what differs), a wrong width, or a value that is not finite.
    """
    found = read_vectors(path, spec.name, width=width)
    if found.card is None:
        raise DetectorError(
            f"{spec.name}: {path.name} holds no card, so it is no saved detector; read a bare direction with mi.direction({spec.name!r}, file, at=…)"
        )
    card, where = found.card, f"{spec.name}: {path.name}"
    if card.get("format") != _FORMAT:
        raise DetectorError(f"{where} is in format {card.get('format')!r}, this version reads {_FORMAT}; fit the detector again")
    if card.get("model_root") != model_root:
        raise DetectorError(
            f"{where} was learned on another model (root {_short(card.get('model_root'))}, this one has {_short(model_root)}); fit it on this model"
        )
    if card.get("spec_digest") != spec.digest:
        raise DetectorError(f"{where} was learned for another spec: {_differences(card.get('spec'), spec.describe())}; fit it again")
    threshold, notes = card.get("threshold"), card.get("card")
    if (threshold is not None and not _is_number(threshold)) or not isinstance(notes, dict) or (threshold is None) != (spec.threshold is None):
        raise DetectorError(f"{where}: its card has a broken threshold or no notes; fit the detector again")
    if found.centre is None:
        raise DetectorError(f"{where} has no tensor 'centre'; fit the detector again")
    return FittedDetector(spec, model_root, _place(card.get("at"), spec, where), found.direction, found.centre, threshold, notes)


def _place(described: Json, spec: DetectorSpec, where: str) -> At:
    layer = described.get("layer") if isinstance(described, dict) else None
    expected = At(spec.point, layer=layer if isinstance(layer, int) and not isinstance(layer, bool) else None)
    if described != expected.describe() or (layer is None) != (spec.point == "embed"):
        raise DetectorError(f"{where}: its card names no place that this spec could have; fit the detector again")
    return expected


def _differences(saved: Json, wanted: Mapping[str, Json]) -> str:
    if not isinstance(saved, dict):
        return "its card does not say which"
    differing = [name for name in wanted if saved.get(name) != wanted[name]]
    return (
        "; ".join(f"{name} is {_show(saved.get(name))} there and {_show(wanted[name])} here" for name in differing) or "its digest does not fit its description"
    )


def _show(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=True, sort_keys=True)
    return text if len(text) <= 120 else text[:117] + "…"


def _short(root: Json) -> str:
    return root[:12] if isinstance(root, str) else "unknown"


def _is_number(value: Json) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
