"""The flat tables of a bundle: their schemas, their rows, and a digest of their rows that does not depend on who wrote the Parquet.

`runs`, `audits` and `claims` repeat the records of `evidence.json`, one row each, so that a query joins them with `samples` on plan digest, audit id, claim
id and reading id (`samples.measurement`). A field that is itself a list or a record is canonical JSON in a text column.
"""

import hashlib
import types
import typing
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Final, Literal, get_args, get_origin

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mi_audit.evidence import samples, tokens
from mi_audit.evidence.canonical import fragment
from mi_audit.evidence.fields import Record
from mi_audit.evidence.records import AuditRecord, ClaimRecord, ModelRecord, PlanRecord, RunRecord

RUNS: Final = "runs.parquet"
AUDITS: Final = "audits.parquet"
CLAIMS: Final = "claims.parquet"
SAMPLES: Final = "samples.parquet"
TOKENS: Final = "tokens.parquet"
NAMES: Final = (RUNS, AUDITS, CLAIMS, SAMPLES, TOKENS)

_MODEL_COLUMNS: Final = ("ref", "root", "architecture", "parameters", "revision", "dtype", "device", "attention")
_PLAN_COLUMNS: Final = ("alpha", "seed", "limit")
_SCALARS: Final = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def flat_tables(run: RunRecord) -> dict[str, pa.Table]:
    """`runs`, `audits` and `claims`, by file name; each row carries the plan's digest."""
    return {RUNS: _runs(run), AUDITS: _rows(AuditRecord, run.audits, run), CLAIMS: _rows(ClaimRecord, run.claims, run)}


def sorted_by(name: str) -> tuple[str, ...]:
    """The columns that a table's rows are sorted by; none where they keep the plan's order."""
    return {SAMPLES: samples.SORTED_BY, TOKENS: tokens.SORTED_BY}.get(name, ())


class RowDigest:
    """SHA-256 over the logical content of a table's rows, in their order, whatever the chunks, the encoding or the compression.

    Each column is hashed as validity bytes, little-endian values (texts: UTF-8 lengths, then bytes; what is null counts as zero or empty); the digest is
    over the names, types and hashes of all columns.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._columns = [(field.name, _kind(field.type), [hashlib.sha256() for _ in range(3)]) for field in schema]
        self.rows = 0

    def update(self, batches: Iterable[pa.RecordBatch]) -> "RowDigest":
        """Take more rows in."""
        for batch in batches:
            self.rows += batch.num_rows
            for (_, _, (validity, lengths, values)), column in zip(self._columns, batch.columns, strict=True):
                if pa.types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                validity.update(np.asarray(pc.is_valid(column)).astype(np.uint8).tobytes())
                if pa.types.is_string(column.type):
                    column = pc.fill_null(column, "")
                    lengths.update(np.asarray(pc.binary_length(column)).astype("<i4").tobytes())
                    values.update(_text(column))
                else:
                    values.update(_numbers(column))
        return self

    def hexdigest(self) -> str:
        """The digest of what was taken in."""
        whole = hashlib.sha256()
        for name, kind, parts in self._columns:
            whole.update(f"{name}\0{kind}\0{''.join(part.hexdigest() for part in parts)}\n".encode())
        return whole.hexdigest()


def digest_of(table: pa.Table) -> str:
    """The logical digest of a table's rows."""
    return RowDigest(table.schema).update(table.to_batches()).hexdigest()


def _kind(kind: pa.DataType) -> str:
    return str(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _text(column: pa.Array) -> memoryview:
    _, offsets, data = column.buffers()
    if not len(column) or data is None:
        return memoryview(b"")
    ends = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    return memoryview(data)[ends[0] : ends[-1]]


def _numbers(column: pa.Array) -> bytes:
    if pa.types.is_boolean(column.type):
        return np.asarray(pc.fill_null(column, False)).astype(np.uint8).tobytes()
    array = np.asarray(pc.fill_null(column, 0))
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _runs(run: RunRecord) -> pa.Table:
    model = {f"model_{name}": (_arrow_type(ModelRecord, name), getattr(run.model, name, None)) for name in _MODEL_COLUMNS}
    plan = {name: (_arrow_type(PlanRecord, name), getattr(run.plan, name)) for name in _PLAN_COLUMNS}
    columns: dict[str, tuple[pa.DataType, Any]] = {
        "plan_digest": (pa.string(), run.plan.digest),
        "schema_version": (pa.string(), run.schema_version),
        "verdict": (pa.string(), run.verdict.value),
        "exit_code": (pa.int64(), run.exit_code),
        "partial": (pa.string(), fragment(list(run.partial))),
        "audits": (pa.int64(), len(run.audits)),
        "claims": (pa.int64(), len(run.claims)),
        **plan,
        **model,
    }
    return pa.table({name: pa.array([value], kind) for name, (kind, value) in columns.items()})


def _rows(kind: type[Record], records: Sequence[Record], run: RunRecord) -> pa.Table:
    columns = {"plan_digest": pa.array([run.plan.digest] * len(records), pa.string())}
    for name in kind.model_fields:
        columns[name] = pa.array([_cell(getattr(record, name)) for record in records], _arrow_type(kind, name))
    return pa.table(columns)


def _cell(value: object) -> object:
    if isinstance(value, tuple):
        return fragment([part.model_dump(mode="json") if isinstance(part, Record) else part for part in value])
    return value.value if isinstance(value, Enum) else value


def _arrow_type(kind: type[Record], name: str) -> pa.DataType:
    annotation: Any = kind.model_fields[name].annotation
    if get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    while hasattr(annotation, "__metadata__"):
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal or (isinstance(annotation, type) and issubclass(annotation, Enum)):
        return pa.string()
    return _SCALARS.get(annotation, pa.string())
