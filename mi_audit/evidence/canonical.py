"""Canonical JSON (RFC 8785): one text for one value, and a reader that trusts nothing."""

import json
import re
from typing import Any, Final, Never, TypeVar

import rfc8785
from pydantic import ValidationError

from mi_audit.errors import EvidenceError
from mi_audit.evidence.fields import MAX_INTEGER, Record
from mi_audit.evidence.records import RunRecord, VolatileRecord

MAX_BYTES: Final = 64 * 2**20
MAX_DEPTH: Final = 32

_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)

Kind = TypeVar("Kind", bound=Record)


class Evidence(Record):
    """The whole of `evidence.json`."""

    evidence: RunRecord
    """Equal for equal inputs."""
    volatile: VolatileRecord
    """What differs between two equal runs."""


def dump(record: Record, name: str) -> bytes:
    """Canonical JSON and a newline: the content of the file `name`.

    Raises:
        EvidenceError: the record holds what canonical JSON can't carry, or it is too large.
    """
    try:
        raw = rfc8785.dumps(record.model_dump(mode="json")) + b"\n"
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise EvidenceError(f"{name} can't be written: {error}") from error
    if len(raw) > MAX_BYTES:
        raise EvidenceError(f"{name} would take {len(raw)} bytes, more than {MAX_BYTES}; audit in several runs")
    return raw


def fragment(value: object) -> str:
    """Canonical JSON of a part of a record, for a table's cell."""
    return rfc8785.dumps(value).decode()  # type: ignore[arg-type]


def parse(kind: type[Kind], raw: bytes, name: str) -> Kind:
    """The record in `raw`, the content of the file `name`.

    Raises:
        EvidenceError: too large or too deep, not JSON, a duplicate key, NaN or infinity, an integer beyond 2^53 − 1, a field that is unknown, missing or of
            the wrong type, or a text that is not the canonical one.
    """
    if len(raw) > MAX_BYTES:
        raise EvidenceError(f"{name} is larger than {MAX_BYTES} bytes; it is not read")
    _check_syntax(raw, name)
    try:
        record = kind.model_validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "(top)"
        raise EvidenceError(f"{name}: {place}: {first['msg']}; the file was edited or comes from another version") from error
    if dump(record, name) != raw:
        raise EvidenceError(f"{name} is not canonical JSON (RFC 8785); it was edited after the run")
    return record


def _check_syntax(raw: bytes, name: str) -> None:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise EvidenceError(f"{name}: the key {twice!r} occurs twice in one object")
        return found

    def constant(text: str) -> Never:
        raise EvidenceError(f"{name}: {text} is no JSON number")

    def integer(text: str) -> int:
        if len(text) > 17 or abs(value := int(text)) > MAX_INTEGER:
            raise EvidenceError(f"{name}: the integer {text[:40]} is beyond ±(2^53 − 1) and would lose digits")
        return value

    try:
        text = raw.decode("utf-8")
        _check_depth(text, name)
        json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_int=integer)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EvidenceError(f"{name} is not JSON: {error}") from error


def _check_depth(text: str, name: str) -> None:
    depth = 0
    for token in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            raise EvidenceError(f"{name} is nested deeper than {MAX_DEPTH} levels; it is not read")
