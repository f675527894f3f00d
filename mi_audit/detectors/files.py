"""Directions from safetensors files that anybody may have written."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError, deserialize

from mi_audit.errors import DetectorError
from mi_audit.plan.digest import Json
from mi_audit.stats.checks import Floats

CARD: Final = "mi_audit_card"
"""The one key of the header's metadata that is ours."""

_MOST_BYTES: Final = 64 * 2**20
_MOST_CARD: Final = 2**20
_DTYPES: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True, eq=False)
class Vectors:
    """What a file holds: `direction` [d], `centre` [d] if it has one, and the card of a saved detector if it is one."""

    direction: Floats
    centre: Floats | None
    card: dict[str, Json] | None


def read_vectors(path: Path, name: str, *, width: int | None = None, digest: str | None = None) -> Vectors:
    """Read the tensors `direction` and `centre` of a safetensors file.

    Args:
        path: the file.
        name: the detector's, for messages.
        width: how long the vectors must be.
        digest: the SHA-256 that the file must have.

    Raises:
        DetectorError: the file can't be read, is too large, was changed or is damaged; a tensor is missing, is one too many, or is of a wrong type or shape;
            a value is not finite; the direction is zero.
    """
    where = f"{name}: {path.name}"
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DetectorError(f"{where} is larger than 64 MiB, which no direction is")
        data = path.read_bytes()
    except OSError as error:
        raise DetectorError(f"{where} can't be read: {error.strerror}") from error
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise DetectorError(f"{where} changed after the run was planned; run again to plan with what it holds now")
    try:
        tensors = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise DetectorError(f"{where} is no safetensors file or is damaged ({error}); save the vectors with safetensors.numpy.save_file") from error
    if extra := sorted(set(tensors) - {"direction", "centre"}):
        raise DetectorError(f"{where} holds the tensor {extra[0]!r}; a direction's file holds 'direction' and, if it has one, 'centre', and nothing else")
    if "direction" not in tensors:
        raise DetectorError(f"{where} holds no tensor 'direction'; save the vector under that name")
    direction = _vector(tensors["direction"], "direction", where, width)
    if not direction.any():
        raise DetectorError(f"{where}: its direction is zero, so it reads nothing")
    centre = _vector(tensors["centre"], "centre", where, len(direction)) if "centre" in tensors else None
    return Vectors(direction, centre, _card(data, where))


def _vector(tensor: dict[str, object], name: str, where: str, width: int | None) -> Floats:
    dtype, shape, data = tensor["dtype"], tensor["shape"], tensor["data"]
    if dtype not in _DTYPES:
        raise DetectorError(f"{where}: the tensor {name!r} is of type {dtype}; save it as float32")
    assert isinstance(shape, list) and isinstance(data, bytes | bytearray) and isinstance(dtype, str)
    if len(shape) != 1 or (width is not None and shape[0] != width):
        raise DetectorError(
            f"{where}: the tensor {name!r} has shape {shape}, expected [{width if width is not None else 'd'}]; is it from another model or hook point?"
        )
    vector = np.frombuffer(data, dtype=_DTYPES[dtype]).astype(np.float64)
    if not np.isfinite(vector).all():
        raise DetectorError(f"{where}: {name}[{int(np.argmin(np.isfinite(vector)))}] is not finite; every number of a direction must be")
    return vector


def _card(data: bytes, where: str) -> dict[str, Json] | None:
    """The card in the header's metadata; `deserialize` has checked that the header is there and is JSON."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text = header.get("__metadata__", {}).get(CARD)
    if text is None:
        return None
    try:
        if len(text) > _MOST_CARD:
            raise ValueError("it is longer than 1 MiB")
        card = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DetectorError(f"{where}: its card is damaged ({error}); fit the detector again, or save its vectors alone") from error
    if not isinstance(card, dict):
        raise DetectorError(f"{where}: its card is damaged (no JSON object); fit the detector again, or save its vectors alone")
    return card


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
