"""What a compliance team edits beside the templates: the catalogue of controls and the texts on limits."""

from pathlib import Path
from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mi_audit.errors import EvidenceError

MAX_BYTES: Final = 4 * 2**20
_Kind = TypeVar("_Kind")


class Control(BaseModel):
    """A control that an audit can support: never satisfy."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.\-]{0,99}$")]
    """Slug, as written in `controls=` of an audit."""
    framework: str
    """Law, standard or framework."""
    reference: str
    """Place in it."""
    title: str
    """What it asks, in our words."""
    status: str = "unverified"
    """`unverified` until somebody checked this entry against the text; or what became of the control."""


class Limit(BaseModel):
    """A text on what is not shown, printed when its condition holds of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    when: str
    """A fact of the run, as `facts.facts` names them."""
    title: str
    """The limit in a few words."""
    text: str
    """The limit in full."""


class Limits(BaseModel):
    """`limits.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    not_shown: tuple[Limit, ...]
    """What this run does not show."""
    methods: tuple[Limit, ...]
    """Limits of the methods."""


def controls(folder: Path) -> dict[str, Control]:
    """`controls.json` by id.

    Raises:
        EvidenceError: the file is missing or malformed, or an id occurs twice.
    """
    found = _read(folder / "controls.json", TypeAdapter(tuple[Control, ...]))
    by_id = {control.id: control for control in found}
    if len(by_id) < len(found):
        twice = next(control.id for control in found if sum(other.id == control.id for other in found) > 1)
        raise EvidenceError(f"{folder / 'controls.json'}: the id {twice!r} occurs twice")
    return by_id


def limits(folder: Path) -> Limits:
    """`limits.json`.

    Raises:
        EvidenceError: the file is missing or malformed.
    """
    return _read(folder / "limits.json", TypeAdapter(Limits))


def _read(path: Path, kind: TypeAdapter[_Kind]) -> _Kind:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise EvidenceError(f"{path}: {error.strerror}; the report needs it") from error
    if len(raw) > MAX_BYTES:
        raise EvidenceError(f"{path} is larger than {MAX_BYTES} bytes; it is not read")
    try:
        return kind.validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise EvidenceError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
