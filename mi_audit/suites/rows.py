"""What every reader of a format gives: numbered rows, each a dict of what the file says."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mi_audit.suites import limits
from mi_audit.suites.problems import Place, Problem, Report

if TYPE_CHECKING:
    from mi_audit.suites.prompt import Prompt

Row = Mapping[str, object]


@dataclass(frozen=True)
class Rows:
    """The rows of one source. `untyped`: every value is a string (CSV). `header_hint`: what may have gone wrong when a column is missing."""

    place: Place
    rows: "Iterator[tuple[int, Row | Prompt]]"
    untyped: bool = False
    header_hint: str = ""


def decode(place: Place, data: bytes, report: Report) -> str | None:
    """The text of a file that must be UTF-8 without a byte order mark; None when it isn't, which has been reported."""
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        report(Problem("error", place, "starts with a byte order mark", "save the file as UTF-8 without BOM"))
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        report(Problem("error", place.at(line), f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8", "save the file as UTF-8"))
        return None


def characters(value: object) -> int:
    """The length of all the text in a row, or in a part of one."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(characters(item) for item in inner)


def too_long(length: int) -> str:
    """What is wrong with a row of `length` characters."""
    return f"has {length} characters, {limits.ROW_CHARACTERS} are the limit of a row"
