"""Parquet: strings, numbers and booleans, and `messages` as a list of structs. Imports pyarrow only when such a file is read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from mi_audit.suites import limits
from mi_audit.suites.problems import Place, Problem, Report, listing
from mi_audit.suites.rows import Row, Rows, characters, too_long

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH: Final = 256
"""Rows decoded at a time: what a hostile file can make us hold before its rows are measured."""


def parquet_rows(source: str, data: bytes, dropped: frozenset[str], report: Report) -> Rows:
    """Rows are numbered from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = Place(source, "row")
    try:
        schema = pq.read_schema(pa.BufferReader(data))
        texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
        # Dictionaries stay dictionaries: a few bytes on disk can't become gigabytes before a row's length is known.
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        report(Problem("error", place, f"is not a Parquet file ({error})", "write it again"))
        return Rows(place, iter(()))
    names = [name for name in schema.names if name not in dropped]
    if not _within_limits(file, schema, names, place, report):
        return Rows(place, iter(()))
    return Rows(place, _rows(file, names, place, report))


def _within_limits(file: "pq.ParquetFile", schema: "pa.Schema", names: list[str], place: Place, report: Report) -> bool:
    import pyarrow as pa

    metadata = file.metadata
    size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    twice = [name for name in dict.fromkeys(schema.names) if schema.names.count(name) > 1]
    if twice:
        report(Problem("error", place, f"has two columns called {listing(twice)}", "rename one of them"))
    elif metadata.num_columns > limits.COLUMNS:
        report(Problem("error", place, f"has {metadata.num_columns} columns, {limits.COLUMNS} are the limit", "remove some"))
    elif metadata.num_rows > limits.ROWS:
        report(Problem("error", place, f"has {metadata.num_rows} rows, {limits.ROWS} are the limit of a suite", "take a sample of them"))
    elif size > limits.FILE_BYTES:
        report(Problem("error", place, f"has {size} bytes when uncompressed, {limits.FILE_BYTES} are the limit", "split the file"))
    else:
        strange = [name for name in names if not _supported(schema.field(name).type, pa)]
        if not strange:
            return True
        kind = schema.field(strange[0]).type
        fix = f"convert it to strings or numbers, or drop it: columns={{{strange[0]!r}: None}}"
        report(Problem("error", place, f"the column's type {kind} can't be read", fix, strange[0]))
    return False


def _supported(kind: "pa.DataType", pa: Any) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _supported(kind.value_type, pa)
    if types.is_list(kind) or types.is_large_list(kind):
        return bool(types.is_struct(kind.value_type) and all(_is_text(field.type, types) for field in kind.value_type))
    return bool(_is_text(kind, types) or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind))


def _is_text(kind: "pa.DataType", types: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _rows(file: "pq.ParquetFile", names: list[str], place: Place, report: Report) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa

    number = total = 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH, columns=names):
            index, longest = max((_longest(column, pa) for column in batch.columns), key=lambda found: found[1], default=(0, 0))
            if longest > limits.ROW_CHARACTERS:
                report(Problem("error", place.at(number + index + 1), too_long(longest), "shorten it"))
                return
            for row in batch.to_pylist():
                number += 1
                length = characters(row)
                total += length
                if total > limits.FILE_BYTES:
                    report(
                        Problem("error", place.at(number), f"the text up to here is longer than {limits.FILE_BYTES} characters, the limit", "split the file")
                    )
                    return
                if length > limits.ROW_CHARACTERS:
                    report(Problem("error", place.at(number), too_long(length), "shorten it"))
                else:
                    yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        report(Problem("error", place.at(number + 1), f"the data from here on can't be decoded ({error})", "write the file again"))


def _longest(column: "pa.Array", pa: Any) -> tuple[int, int]:
    """Where a column's longest text is, and its characters; (0, 0) for columns of anything else."""
    import pyarrow.compute as pc

    encoded = pa.types.is_dictionary(column.type)
    values = column.dictionary if encoded else column
    if not _is_text(values.type, pa.types):
        return 0, 0
    lengths = pc.fill_null(pc.utf8_length(values), 0)
    if encoded:
        lengths = pc.fill_null(lengths.take(column.indices), 0)
    longest = pc.max(lengths).as_py() or 0
    return (pc.index(lengths, longest).as_py(), longest) if longest else (0, 0)
