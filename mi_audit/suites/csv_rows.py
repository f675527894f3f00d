"""CSV with a header (RFC 4180): every value is a string, and an empty cell is none."""

import csv
import io
from collections.abc import Iterator

from mi_audit.suites import limits
from mi_audit.suites.problems import Place, Problem, Report, listing
from mi_audit.suites.rows import Row, Rows, decode, too_long


def csv_rows(source: str, data: bytes, dropped: frozenset[str], report: Report) -> Rows:
    """A row a record, numbered by the line that it starts on; blank lines are skipped."""
    place = Place(source, "line")
    text = decode(place, data, report)
    rows = iter(()) if text is None else _rows(place, text, dropped, report)
    return Rows(place, rows, untyped=True, header_hint="; if line 1 is not a header, add one")


def _records(text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start = 1
    for cells in reader:
        if cells:
            yield start, cells
        start = reader.line_num + 1


def _rows(place: Place, text: str, dropped: frozenset[str], report: Report) -> Iterator[tuple[int, Row]]:
    header: list[str] = []
    line = 0
    try:
        for line, cells in _records(text):
            if not header:
                header = cells
                if not _usable(header, place.at(line), report):
                    return
            elif len(cells) != len(header):
                fix = "quote cells that hold a comma or a line break" if len(cells) > len(header) else "add the missing cells"
                report(Problem("error", place.at(line), f"has {len(cells)} cells where the header has {len(header)}", fix))
            elif (length := sum(map(len, cells))) > limits.ROW_CHARACTERS:
                report(Problem("error", place.at(line), too_long(length), "shorten it"))
            else:
                yield line, {name: cell or None for name, cell in zip(header, cells, strict=True) if name not in dropped}
    except csv.Error as error:
        report(Problem("error", place.at(line + 1), f"malformed CSV in the record that starts here or below: {error}", "mend its quotation marks"))


def _usable(header: list[str], place: Place, report: Report) -> bool:
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if "" in (name.strip() for name in header):
        report(Problem("error", place, "the header has a column without a name", "name every column"))
    elif twice:
        report(Problem("error", place, f"the header names {listing(twice)} twice", "rename one of them"))
    elif len(header) > limits.COLUMNS:
        report(Problem("error", place, f"has {len(header)} columns, {limits.COLUMNS} are the limit", "remove some"))
    else:
        return True
    return False
