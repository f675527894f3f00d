"""One way to write and read a Parquet table: equal rows give equal bytes, and a hostile file gives an error."""

import hashlib
import os
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mi_audit.errors import EvidenceError
from mi_audit.evidence.records import TableRecord
from mi_audit.evidence.samples import MAX_ROWS
from mi_audit.evidence.tables import RowDigest

ROW_GROUP: Final = 120_000
MAX_FILE: Final = 8 * 2**30
MAX_UNPACKED: Final = 32 * 2**30
MAX_FOOTER_TEXT: Final = 4 * 2**20
MAX_FOOTER_ITEMS: Final = 1_000_000


def save(path: Path, table: pa.Table, *, sorted_by: tuple[str, ...], schema_version: str, plan_digest: str) -> None:
    """Write a table: zstd, dictionaries, page checksums, declared sorting. Its metadata holds the schema's version and the plan's digest, no time, no id."""
    table = table.replace_schema_metadata({"mi_audit.schema_version": schema_version, "mi_audit.plan_digest": plan_digest})
    pq.write_table(
        table,
        path,
        compression="zstd",
        row_group_size=ROW_GROUP,
        use_dictionary=[field.name for field in table.schema if pa.types.is_string(field.type) or pa.types.is_dictionary(field.type)],
        write_page_checksum=True,
        sorting_columns=[pq.SortingColumn(table.schema.get_field_index(name)) for name in sorted_by] or None,
    )


def measure(path: Path) -> TableRecord:
    """Rows, logical digest and SHA-256 of a table on disk, read a row group at a time.

    Raises:
        EvidenceError: no such file, too large, or not a Parquet table whose checksums hold.
    """
    with _opened(path) as file:
        digest = RowDigest(file.schema_arrow).update(file.iter_batches())
    with path.open("rb") as raw:
        sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
    return TableRecord(rows=digest.rows, digest=digest.hexdigest(), sha256=sha256)


def load(path: Path, *, columns: list[str] | None, equal: dict[str, str | None]) -> pa.Table:
    """The rows of a table whose text columns have the given values (None: any); row groups that can't hold them are not read.

    Raises:
        EvidenceError: as `measure`.
    """
    wanted = {name: value for name, value in equal.items() if value is not None}
    with _opened(path) as file:
        columns = columns if columns is not None else file.schema_arrow.names
        groups = [index for index in range(file.num_row_groups) if all(_may_hold(file, index, name, value) for name, value in wanted.items())]
        table = file.read_row_groups(groups, columns=list(dict.fromkeys([*columns, *wanted])))
    for name, value in wanted.items():
        table = table.filter(pc.equal(table[name], value))
    return table.select(columns)


def _may_hold(file: pq.ParquetFile, group: int, name: str, value: str) -> bool:
    statistics = file.metadata.row_group(group).column(file.schema_arrow.get_field_index(name)).statistics
    return statistics is None or not statistics.has_min_max or statistics.min <= value <= statistics.max


def _opened(path: Path) -> pq.ParquetFile:
    if path.is_symlink() or not path.is_file():
        raise EvidenceError(f"{path}: no such file; the evidence is not whole")
    if os.path.getsize(path) > MAX_FILE:
        raise EvidenceError(f"{path} is larger than {MAX_FILE} bytes; it is not read")
    file = pq.ParquetFile(
        path,
        page_checksum_verification=True,
        thrift_string_size_limit=MAX_FOOTER_TEXT,
        thrift_container_size_limit=MAX_FOOTER_ITEMS,
    )
    unpacked = sum(file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups))
    if file.metadata.num_rows > MAX_ROWS or unpacked > MAX_UNPACKED:
        file.close()
        raise EvidenceError(f"{path} holds {file.metadata.num_rows} rows in {unpacked} bytes unpacked, more than is read")
    return file
