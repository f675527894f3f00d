"""The file formats of suites, by suffix."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Final

from mi_audit.errors import SuiteError
from mi_audit.suites.csv_rows import csv_rows
from mi_audit.suites.files import Located
from mi_audit.suites.json_rows import json_rows, jsonl_rows
from mi_audit.suites.parquet_rows import parquet_rows
from mi_audit.suites.problems import Report
from mi_audit.suites.rows import Reader, Rows

READERS: Final[Mapping[str, Reader]] = {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows, ".parquet": parquet_rows}


def open_rows(located: Located, data: bytes, dropped: frozenset[str], report: Report) -> Rows:
    """The rows of a file by its suffix, without the columns in `dropped`. Raises SuiteError on an unknown suffix, listing those known."""
    suffix = PurePath(located.display).suffix.lower()
    if suffix not in READERS:
        raise SuiteError(f"{located.display}: the suffix {suffix!r} is no suite format; save it as one of {', '.join(READERS)}")
    return READERS[suffix](located.display, data, dropped, report)
