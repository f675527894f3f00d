"""JSON Lines, and JSON arrays of objects."""

import json
import math
import re
from collections.abc import Iterator
from typing import Final

from mi_audit.suites import limits
from mi_audit.suites.problems import Place, Problem, Report, RowError, shorten
from mi_audit.suites.rows import Row, Rows, decode, too_long

_SPACE: Final = re.compile(r"[ \t\r\n]*")


def jsonl_rows(source: str, data: bytes, dropped: frozenset[str], report: Report) -> Rows:
    """One object a line; blank lines are skipped."""
    place = Place(source, "line")
    text = decode(place, data, report)
    return Rows(place, iter(()) if text is None else _lines(place, text, dropped, report))


def json_rows(source: str, data: bytes, dropped: frozenset[str], report: Report) -> Rows:
    """An array of objects, each numbered by the line that it starts on."""
    place = Place(source, "line")
    text = decode(place, data, report)
    return Rows(place, iter(()) if text is None else _array(place, text, dropped, report))


def _lines(place: Place, text: str, dropped: frozenset[str], report: Report) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row, end = _object(line, _skip(line, 0), dropped)
            end = _skip(line, end)
            if end < len(line):
                raise RowError(f"something follows the object at column {end + 1}", "write one object a line")
        except json.JSONDecodeError as error:
            report(Problem("error", place.at(number), f"malformed JSON at column {error.colno}: {error.msg}", "mend the line"))
        except RowError as fault:
            report(Problem("error", place.at(number), fault.what, fault.fix, fault.field))
        else:
            yield number, row


def _array(place: Place, text: str, dropped: frozenset[str], report: Report) -> Iterator[tuple[int, Row]]:
    """Decodes one object after the other, so that each has its line, and an error in one that is well-formed doesn't hide the rest."""
    position = _skip(text, 0)
    if not text.startswith("[", position):
        report(Problem("error", place.at(1), "is not an array", "write [ {…}, {…} ], or one object a line in a .jsonl file"))
        return
    line, counted = 1, 0
    position = _skip(text, position + 1)
    closed = text.startswith("]", position)
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        try:
            row, position = _object(text, position, dropped)
        except json.JSONDecodeError as error:
            report(Problem("error", place.at(error.lineno), f"malformed JSON at column {error.colno}: {error.msg}", "mend the file"))
            return
        except RowError as fault:
            report(Problem("error", place.at(line), fault.what, fault.fix, fault.field))
            return
        yield line, row
        position = _skip(text, position)
        closed = text.startswith("]", position)
        if not closed and not text.startswith(",", position):
            line += text.count("\n", counted, position)
            report(Problem("error", place.at(line), "malformed JSON: a comma or the closing ] is missing", "mend the file"))
            return
        position = _skip(text, position + 1)
    if position < len(text):
        report(Problem("error", place.at(line + text.count("\n", counted, position)), "something follows the array", "remove it"))


def _object(text: str, start: int, dropped: frozenset[str]) -> tuple[Row, int]:
    """The object at `start` and where it ends. Raises JSONDecodeError, or RowError where it breaks a limit or says something twice."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise RowError(f"is nested deeper than {limits.DEPTH} levels, the limit", "flatten it") from None
    if end - start > limits.ROW_CHARACTERS:
        raise RowError(too_long(end - start), "shorten it")
    if not isinstance(value, dict):
        raise RowError(f"{shorten(value, 30)} is not an object", 'write {"text": "…"}')
    if len(value) > limits.COLUMNS:
        raise RowError(f"has {len(value)} keys, {limits.COLUMNS} are the limit", "remove some")
    if _depth(value) > limits.DEPTH:
        raise RowError(f"is nested deeper than {limits.DEPTH} levels, the limit", "flatten it")
    return {name: item for name, item in value.items() if name not in dropped}, end


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        lists = (item if isinstance(item, list) else list(item.values()) for item in level if isinstance(item, list | dict))
        level = [inner for items in lists for inner in items if isinstance(inner, list | dict)]
    return depth


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError(f"the key {shorten(twice)} is given twice", "keep one of them")
    return found


def _integer(digits: str) -> int:
    if len(digits) > len(str(limits.INTEGER)) + 1 or abs(int(digits)) > limits.INTEGER:
        raise RowError(f"an integer is beyond ±{limits.INTEGER}", "write it as a string")
    return int(digits)


def _number(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise RowError(f"{shorten(digits)} is too large for a number", "write it as a string")
    return value


def _constant(name: str) -> float:
    raise RowError(f"{name} is not JSON", "write null, or a number")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_number, parse_constant=_constant)
