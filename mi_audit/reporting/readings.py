"""What the report shows of a reading: its charts, its top-scoring prompts and a random few, by id."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mi_audit.errors import EvidenceError
from mi_audit.evidence.records import ReadingRecord
from mi_audit.evidence.samples import DETECTOR
from mi_audit.evidence.store import Bundle
from mi_audit.evidence.stretches import stretches
from mi_audit.reporting.charts_scores import Histogram, Roc, histogram, roc
from mi_audit.reporting.heat import Heat, TokenScores

TOP: Final = 10
RANDOM: Final = 5
_COLUMNS: Final = ["measurement", "condition", "prompt", "value", "token", "group", "label", "digest"]


@dataclass(frozen=True)
class Sample:
    """One prompt's score. `above`: over the frozen threshold, if there is one."""

    prompt: str
    value: float
    group: str
    label: bool | None
    token: int | None
    digest: str
    above: bool | None


@dataclass(frozen=True)
class ReadingView:
    """A reading with its charts and a few of its prompts."""

    number: int
    record: ReadingRecord
    roc: Roc | None
    histogram: Histogram
    top: tuple[Sample, ...]
    random: tuple[Sample, ...]
    heat: Heat | None


class Scores:
    """The detectors' own scores of a bundle, by reading."""

    def __init__(self, bundle: Bundle) -> None:
        table = bundle.samples(columns=_COLUMNS, arm=DETECTOR)
        self._tables = {str(measurement): part for (measurement,), part in stretches(table, "measurement")}
        self._tokens = TokenScores(bundle.tokens())
        self._seed = bundle.run.plan.seed
        self._digests: dict[str, Mapping[str, str]] = {}

    def view(self, number: int, reading: ReadingRecord, tokens: int) -> ReadingView:
        """Charts, samples and heat strips of at most `tokens` tokens of one reading; the random few follow from the plan's seed.

        Raises:
            EvidenceError: the sample table does not hold the reading as recorded, or the token table holds other prompts.
        """
        rows = self._rows(reading)
        values = np.asarray(rows["value"], dtype=np.float64)
        labels = None if rows["label"].null_count else np.asarray(rows["label"].combine_chunks()).astype(bool)
        prompts: list[str] = rows["prompt"].to_pylist()
        top = np.argsort(-values, kind="stable")[:TOP]
        drawn = sorted(range(len(prompts)), key=lambda row: hashlib.sha256(f"{self._seed}\0{reading.id}\0{prompts[row]}".encode()).digest())[:RANDOM]
        return ReadingView(
            number=number,
            record=reading,
            roc=None if labels is None else roc(values, labels, reading.threshold),
            histogram=histogram(values, labels, reading.threshold),
            top=tuple(_sample(rows, int(row), reading.threshold) for row in top),
            random=tuple(_sample(rows, row, reading.threshold) for row in drawn),
            heat=self._tokens.heat(reading, [(prompts[row], float(values[row])) for row in top], float(np.median(values)), tokens),
        )

    def digests(self, measurement: str) -> Mapping[str, str]:
        """Digest of each prompt of a reading, an experiment or a side effect of one, by id."""
        if measurement not in self._digests:
            rows = self._tables.get(measurement)
            self._digests[measurement] = {} if rows is None else dict(zip(rows["prompt"].to_pylist(), rows["digest"].to_pylist(), strict=True))
        return self._digests[measurement]

    def _rows(self, reading: ReadingRecord) -> Any:
        rows = self._tables.get(reading.id)
        if rows is None or rows.num_rows != reading.n:
            found = 0 if rows is None else rows.num_rows
            raise EvidenceError(f"samples.parquet holds {found} scores of the reading {reading.id}, the records say {reading.n}")
        return rows


def _sample(rows: Any, row: int, threshold: float | None) -> Sample:
    cells = {name: rows[name][row].as_py() for name in ("prompt", "value", "group", "label", "token", "digest")}
    return Sample(**cells, above=None if threshold is None else cells["value"] > threshold)
