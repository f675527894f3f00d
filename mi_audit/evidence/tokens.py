"""The token table: a detector's score at every token of the few prompts of each reading that score highest. It illustrates; no claim is computed from it.

Columns: measurement (id of the reading), prompt, rank (0: the highest score; ties go by id), position (of the token in the prompt, from 0), text (null where
texts are redacted), score, read (whether the token entered the reading), sink (whether it is an attention sink), attribution (what it has to do with the number
that is attributed, null where nothing is). Rows are sorted by measurement, rank and position. Of a longer prompt the last `MAX_TOKENS` tokens are kept, of a
longer text its first `MAX_TEXT` characters.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mi_audit.errors import EvidenceError
from mi_audit.evidence.records import ReadingRecord, RunRecord
from mi_audit.evidence.samples import TEXT
from mi_audit.evidence.stretches import stretches

PROMPTS: Final = 5
MAX_TOKENS: Final = 512
MAX_TEXT: Final = 64
SCHEMA: Final = pa.schema(
    [
        pa.field("measurement", TEXT, nullable=False),
        pa.field("prompt", TEXT, nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("text", TEXT),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("read", pa.bool_(), nullable=False),
        pa.field("sink", pa.bool_(), nullable=False),
        pa.field("attribution", pa.float64()),
    ]
)
SORTED_BY: Final = ("measurement", "rank", "position")


class TokenTable:
    """Collects prompts, and makes one table of them. The tokens' texts are left out unless `texts_shown`."""

    def __init__(self, *, texts_shown: bool) -> None:
        self._shown = texts_shown
        self._parts: dict[str, dict[int, pa.Table]] = {}

    @property
    def readings(self) -> Mapping[str, pa.Table]:
        """The rows of each reading, by its id."""
        return {reading: pa.concat_tables([prompts[rank] for rank in sorted(prompts)]) for reading, prompts in self._parts.items()}

    def add(
        self,
        reading_id: str,
        rank: int,
        prompt: str,
        *,
        texts: Sequence[str],
        scores: NDArray[np.floating],
        read: NDArray[np.bool_],
        sinks: NDArray[np.bool_],
        attributions: NDArray[np.floating] | None = None,
    ) -> None:
        """Add a prompt of L tokens; every sequence has length L.

        Raises:
            EvidenceError: lengths differ, or the reading has a prompt of this rank already.
        """
        length = len(scores)
        if {len(texts), len(read), len(sinks), length if attributions is None else len(attributions)} != {length} or rank in self._parts.get(reading_id, {}):
            raise EvidenceError(f"reading {reading_id}, prompt {prompt!r} of rank {rank}: its columns differ in length, or the rank was added before")
        kept = slice(max(length - MAX_TOKENS, 0), None)
        positions = np.arange(length, dtype=np.int32)[kept]
        n = len(positions)
        shown = pa.array([_cut(text) for text in texts[kept]], pa.string()) if self._shown else pa.nulls(n, pa.string())
        columns = [
            pa.array([reading_id] * n),
            pa.array([prompt] * n),
            pa.array(np.full(n, rank, dtype=np.int32)),
            pa.array(positions),
            shown,
            pa.array(np.asarray(scores, dtype=np.float64)[kept]),
            pa.array(np.asarray(read)[kept]),
            pa.array(np.asarray(sinks)[kept]),
            pa.nulls(n, pa.float64()) if attributions is None else pa.array(np.asarray(attributions, dtype=np.float64)[kept]),
        ]
        self._parts.setdefault(reading_id, {})[rank] = pa.Table.from_arrays(
            [column.dictionary_encode() if field.type == TEXT else column for field, column in zip(SCHEMA, columns, strict=True)], schema=SCHEMA
        )

    def adopt(self, reading_id: str, rows: pa.Table) -> None:
        """Take the rows of a reading as another token table gave them, with their texts or without.

        Raises:
            EvidenceError: they have other columns, or the reading was added before.
        """
        if reading_id in self._parts or rows.schema.remove_metadata() != SCHEMA:
            raise EvidenceError(f"reading {reading_id}: its tokens were added before, or have other columns than a token table")
        self._parts[reading_id] = {int(str(rank)): part for (rank,), part in stretches(rows.replace_schema_metadata(None), "rank")}

    def table(self) -> pa.Table:
        """All rows, sorted. Equal rows give an equal table, however they were cut into chunks."""
        readings = self.readings
        return pa.concat_tables([SCHEMA.empty_table(), *(readings[name] for name in sorted(readings))]).unify_dictionaries().combine_chunks()


def most_rows(run: RunRecord) -> int:
    """How many rows the token table of a run can have, at most."""
    return len(run.readings) * PROMPTS * MAX_TOKENS


def check(table: pa.Table, run: RunRecord) -> None:
    """Refuse a token table that does not fit the records.

    Raises:
        EvidenceError: says what does not fit: its columns; a reading's prompts, ranks or positions; a score that is not finite; a text where the run says
            that texts are redacted, or none where it says that they are shown.
    """
    problem = next(_problems(table, run), None)
    if problem:
        raise EvidenceError(f"the token table contradicts the records: {problem}")


def _problems(table: pa.Table, run: RunRecord) -> Iterator[str]:
    if not table.schema.remove_metadata().equals(SCHEMA):
        yield f"its columns are {', '.join(f'{field.name} {field.type}' for field in table.schema)[:400]}"
        return
    if any(table[name].null_count for name in table.column_names if name not in ("text", "attribution")) or not np.isfinite(np.asarray(table["score"])).all():
        yield "a score is not finite, or a cell is empty"
    if table["text"].null_count != (0 if run.texts_shown else table.num_rows):
        yield f"the run says that texts are {'shown' if run.texts_shown else 'redacted'}, the table does not agree"
    elif any(len(text) > MAX_TEXT for text in table["text"].unique().to_pylist() if text is not None):
        yield f"a text is longer than {MAX_TEXT} characters"
    found: dict[object, list[tuple[object, object, NDArray[np.int32]]]] = {}
    summed: dict[tuple[object, object], float | None] = {}
    for (measurement, rank, prompt), part in stretches(table, "measurement", "rank", "prompt"):
        found.setdefault(measurement, []).append((rank, prompt, np.asarray(part["position"])))
        nulls = part["attribution"].null_count
        summed[measurement, prompt] = None if nulls == part.num_rows else float(np.asarray(part["attribution"], dtype=np.float64).sum())
    for measurement in found.keys() - {reading.id for reading in run.readings}:
        yield f"it scores tokens of the reading {str(measurement)[:80]!r}, which is not recorded"
    for reading in run.readings:
        expected = 0 if reading.tokens_error is not None else min(PROMPTS, reading.n)
        prompts = found.get(reading.id, [])
        if [rank for rank, _, _ in prompts] != list(range(expected)) or len({prompt for _, prompt, _ in prompts}) < expected:
            yield f"of the reading {reading.id} it has not the {expected} prompts that score highest, each once and in order"
        for _, prompt, positions in prompts:
            if len(positions) > MAX_TOKENS or positions[0] < 0 or (np.diff(positions) != 1).any():
                yield f"the prompt {str(prompt)[:80]!r} of the reading {reading.id} has not at most {MAX_TOKENS} consecutive tokens"
        yield from _attributions(reading, prompts, summed)


def _attributions(
    reading: ReadingRecord, prompts: Sequence[tuple[object, object, NDArray[np.int32]]], summed: Mapping[tuple[object, object], float | None]
) -> Iterator[str]:
    """What was attributed adds up to what the record says of it, where all tokens of the prompt are there."""
    recorded = {} if reading.attribution is None else {each.prompt: each for each in reading.attribution.prompts}
    if set(recorded) != {prompt for _, prompt, _ in prompts if summed[reading.id, prompt] is not None}:
        yield f"the reading {reading.id} has attributions of other prompts than its record says"
        return
    for _, prompt, positions in prompts:
        each = recorded.get(str(prompt))
        total = summed[reading.id, prompt]
        if each is None or total is None:
            continue
        if not np.isfinite(total):
            yield f"an attribution of the prompt {str(prompt)[:80]!r} of the reading {reading.id} is not finite"
        elif positions[0] == 0 and not np.isclose(total - (each.value - each.baseline), each.residual, rtol=1e-9, atol=1e-9 * (1 + abs(total))):
            yield f"the attributions of the prompt {str(prompt)[:80]!r} of the reading {reading.id} do not add up to what its record says"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
