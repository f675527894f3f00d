"""The file formats of suites, by suffix: those built in, and how any of them is read."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath

from mi_audit.errors import SuiteError
from mi_audit.hookspecs import SuiteFormat, hookimpl
from mi_audit.plugins import Offer, active
from mi_audit.suites import limits
from mi_audit.suites.csv_rows import csv_rows
from mi_audit.suites.files import Located
from mi_audit.suites.json_rows import json_rows, jsonl_rows
from mi_audit.suites.parquet_rows import parquet_rows
from mi_audit.suites.problems import Problem, Report
from mi_audit.suites.rows import Row, Rows, characters, too_long


@hookimpl
def mi_audit_suite_formats() -> Mapping[str, SuiteFormat]:
    """The formats that are built in."""
    return {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows, ".parquet": parquet_rows}


def open_rows(located: Located, data: bytes, dropped: frozenset[str], report: Report) -> Rows:
    """The rows of a file by its suffix, without the columns in `dropped`.

    Raises:
        SuiteError: the suffix is unknown; the message lists those known.
        PluginError: a plugin's reader failed, or gave something else than rows.
    """
    suffix, formats = PurePath(located.display).suffix.lower(), active().suite_formats
    if suffix not in formats:
        raise SuiteError(f"{located.display}: the suffix {suffix!r} is no suite format; save it as one of {', '.join(formats)}")
    offer = formats[suffix]
    with offer.blamed():
        rows = offer.value(located.display, data, dropped, report)
        if not isinstance(rows, Rows):
            raise TypeError(f"it returned {type(rows).__name__} instead of Rows")
    return replace(rows, rows=_held_to_limits(offer, rows, dropped, report))


def _held_to_limits(offer: Offer[SuiteFormat], rows: Rows, dropped: frozenset[str], report: Report) -> Iterator[tuple[int, Row]]:
    """The rows of a reader that need not have kept to anything."""
    with offer.blamed():
        for number, row in rows.rows:
            if not isinstance(number, int) or not isinstance(row, Mapping):
                raise TypeError(f"after line {number} it gave {type(row).__name__} instead of a mapping from columns to values")
            if len(row) > limits.COLUMNS:
                report(Problem("error", rows.place.at(number), f"has {len(row)} columns, {limits.COLUMNS} are the limit", "remove some"))
            elif (length := characters(row)) > limits.ROW_CHARACTERS:
                report(Problem("error", rows.place.at(number), too_long(length), "shorten it"))
            else:
                yield number, {name: value for name, value in row.items() if name not in dropped} if dropped else row
