"""The sample table: every number that a claim was computed from, one row each, in long form.

Columns: measurement (id of the reading), arm (the detector, a null, a baseline), draw (of a null, from 0), condition (of an intervention; empty otherwise),
prompt, value, threshold (frozen; null without one), token (index read; null where tokens were averaged), group, label (null without labels), digest of the
prompt, pair (for paired quantities; null without pairs). Rows are sorted by measurement, arm, condition, draw, prompt, token, so that equal inputs give
equal tables in whatever order they were added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mi_audit.errors import EvidenceError
from mi_audit.evidence.experiments import AS_IT_IS, condition
from mi_audit.evidence.records import RunRecord

Floats = NDArray[np.floating]

TEXT: Final = pa.dictionary(pa.int32(), pa.string())
SCHEMA: Final = pa.schema(
    [
        pa.field("measurement", TEXT, nullable=False),
        pa.field("arm", TEXT, nullable=False),
        pa.field("draw", pa.int32(), nullable=False),
        pa.field("condition", TEXT, nullable=False),
        pa.field("prompt", TEXT, nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("threshold", pa.float64()),
        pa.field("token", pa.int32()),
        pa.field("group", TEXT, nullable=False),
        pa.field("label", pa.bool_()),
        pa.field("digest", TEXT, nullable=False),
        pa.field("pair", TEXT),
    ]
)
DETECTOR: Final = "detector"
"""The arm of the detector's own scores."""
SORTED_BY: Final = ("measurement", "arm", "condition", "draw", "prompt", "token")
MAX_ROWS: Final = 100_000_000
MAX_NAME: Final = 1_024


@dataclass(frozen=True, eq=False)
class Arm:
    """One way of scoring a reading's prompts.

    `name`: "detector", "null: shuffled labels", "null: random directions", "baseline: length", …; `values` [draws, n]; `thresholds` [draws], None where
    there is none; `condition`: strength and kind of an intervention, empty for a plain reading; `labels` [draws, n]: what each draw is held against, where
    that is not the reading's own labels.
    """

    name: str
    values: Floats
    thresholds: Floats | None = None
    condition: str = ""
    labels: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class _Rows:
    """The prompts of one reading, sorted, with their arms, sorted."""

    prompts: pa.Array
    digests: pa.Array
    groups: pa.Array
    labels: pa.Array
    tokens: pa.Array
    pairs: pa.Array | None
    arms: tuple[Arm, ...]


class SampleTable:
    """Collects readings and makes one table of them."""

    def __init__(self) -> None:
        self._readings: dict[str, pa.Table] = {}

    @property
    def readings(self) -> Mapping[str, pa.Table]:
        """The rows of each reading, by its id."""
        return MappingProxyType(self._readings)

    def add(
        self,
        reading_id: str,
        *,
        prompt_ids: Sequence[str],
        digests: Sequence[str],
        groups: Sequence[str],
        labels: Sequence[bool] | NDArray[np.bool_] | None,
        token_index: Sequence[int | None] | NDArray[np.integer],
        arms: Sequence[Arm],
        pairs: Sequence[str] | None = None,
    ) -> None:
        """Add a reading of n prompts; every sequence but `arms` has length n. `pairs` names each prompt's pair, for paired quantities.

        Raises:
            EvidenceError: lengths differ, a value is not finite, a prompt (or an arm) occurs twice, a name is no text, the reading was added before, or there
                are too many rows in all.
        """
        where = f"reading {reading_id}"
        self._refuse(reading_id, sum(np.size(arm.values) for arm in arms))
        n = len(prompt_ids)
        known_labels = None if labels is None else [bool(label) for label in labels]
        tokens = [None if token is None else int(token) for token in token_index]
        for name, column in (("digests", digests), ("groups", groups), ("labels", known_labels), ("token_index", tokens), ("pairs", pairs)):
            if column is not None and len(column) != n:
                raise EvidenceError(f"{where}: {name} has {len(column)} rows for {n} prompts")
        for arm in arms:
            _check_arm(arm, n, where)
        if len({(arm.name, arm.condition) for arm in arms}) < len(arms):
            raise EvidenceError(f"{where}: an arm occurs twice under one condition; put its draws in one array")
        order = sorted(range(n), key=lambda row: (prompt_ids[row], -1 if tokens[row] is None else tokens[row]))
        if any(_same(prompt_ids, tokens, *rows) for rows in pairwise(order)):
            raise EvidenceError(f"{where}: a prompt id occurs twice; ids must be unique within a suite")
        rows = _Rows(
            prompts=_texts(prompt_ids, order, where, "prompt id"),
            digests=_texts(digests, order, where, "digest"),
            groups=_texts(groups, order, where, "group"),
            labels=pa.nulls(n, pa.bool_()) if known_labels is None else pa.array([known_labels[row] for row in order], pa.bool_()),
            tokens=pa.array([tokens[row] for row in order], pa.int32()),
            pairs=None if pairs is None else _texts(pairs, order, where, "pair"),
            arms=tuple(
                Arm(
                    arm.name,
                    np.asarray(arm.values, dtype=np.float64)[:, order],
                    arm.thresholds,
                    arm.condition,
                    None if arm.labels is None else np.asarray(arm.labels, dtype=np.bool_)[:, order],
                )
                for arm in sorted(arms, key=lambda arm: (arm.name, arm.condition))
            ),
        )
        self._readings[reading_id] = pa.concat_tables([SCHEMA.empty_table(), *(_arm_table(reading_id, rows, arm) for arm in rows.arms)])

    def adopt(self, reading_id: str, rows: pa.Table) -> None:
        """Take the rows of a reading as another sample table gave them.

        Raises:
            EvidenceError: they have other columns, the reading was added before, or there are too many rows in all.
        """
        self._refuse(reading_id, rows.num_rows)
        if rows.schema.remove_metadata() != SCHEMA:
            raise EvidenceError(f"reading {reading_id}: its rows have other columns than a sample table")
        self._readings[reading_id] = rows.replace_schema_metadata(None)

    def table(self) -> pa.Table:
        """All rows, sorted. Equal rows give an equal table, however they were cut into chunks."""
        parts = [self._readings[name] for name in sorted(self._readings)]
        return pa.concat_tables([SCHEMA.empty_table(), *parts]).unify_dictionaries().combine_chunks()

    def _refuse(self, reading_id: str, rows: int) -> None:
        if reading_id in self._readings:
            raise EvidenceError(f"reading {reading_id} was added twice to the sample table")
        total = rows + sum(table.num_rows for table in self._readings.values())
        if total > MAX_ROWS:
            raise EvidenceError(f"the sample table would have {total} rows, more than {MAX_ROWS}; audit in several runs")


def check_rows(detector_rows: pa.Table, run: RunRecord) -> None:
    """Refuse a sample table that does not hold one score of the detector for each prompt: of a reading; of an experiment as it is, and at each strength.

    Args:
        detector_rows: the columns `measurement` and `condition` of the rows whose arm is the detector.
        run: the records.

    Raises:
        EvidenceError: names the reading or the experiment that does not fit.
    """
    counted = detector_rows.group_by(["measurement", "condition"]).aggregate([([], "count_all")]).to_pylist()
    found: dict[str, dict[str, int]] = {}
    for count in counted:
        found.setdefault(count["measurement"], {})[count["condition"]] = count["count_all"]
    for reading in run.readings:
        if found.pop(reading.id, {}) != {"": reading.n}:
            raise EvidenceError(f"the sample table contradicts the records: it has not the {reading.n} scores of the reading {reading.id}, one a prompt")
    for experiment in run.experiments:
        conditions = [AS_IT_IS, *(condition(point.strength) for point in experiment.points if point.failed is None)]
        for name, n in ((experiment.id, experiment.n), *((curve.id, curve.n) for curve in experiment.side_effects)):
            if found.pop(name, {}) != dict.fromkeys(conditions, n):
                raise EvidenceError(
                    f"the sample table contradicts the records: it has not the {n} × {len(conditions)} numbers of the experiment {experiment.id},"
                    " of each prompt as it is and at each strength"
                )
    if found:
        raise EvidenceError(f"the sample table contradicts the records: it has scores of the reading {str(min(found))[:80]!r}, which is not recorded")


def _check_arm(arm: Arm, n: int, where: str) -> None:
    values = np.asarray(arm.values)
    if values.ndim != 2 or values.shape[1] != n or values.dtype.kind not in "fiu":
        raise EvidenceError(f"{where}: the arm {arm.name!r} has values of shape {values.shape} and type {values.dtype}, expected numbers [draws, {n}]")
    if not np.isfinite(values).all():
        raise EvidenceError(f"{where}: the arm {arm.name!r} holds a value that is not finite; no claim can rest on it")
    if arm.labels is not None and np.shape(arm.labels) != values.shape:
        raise EvidenceError(f"{where}: the arm {arm.name!r} has labels of shape {np.shape(arm.labels)} for values of shape {values.shape}")
    if arm.thresholds is None:
        return
    thresholds = np.asarray(arm.thresholds)
    if thresholds.shape != values.shape[:1] or not np.isfinite(thresholds).all():
        raise EvidenceError(f"{where}: the arm {arm.name!r} needs one finite threshold for each of its {values.shape[0]} draws")


def _same(prompt_ids: Sequence[str], tokens: list[int | None], row: int, other: int) -> bool:
    return (prompt_ids[row], tokens[row]) == (prompt_ids[other], tokens[other])


def _texts(values: Sequence[str], order: list[int], where: str, what: str) -> pa.Array:
    odd = [value for value in values if not isinstance(value, str) or len(value) > MAX_NAME or not (value.isascii() or _is_well_formed(value))]
    if odd:
        raise EvidenceError(f"{where}: the {what} {str(odd[0])[:80]!r} is no well-formed text of at most {MAX_NAME} characters")
    return pa.array([values[row] for row in order], pa.string())


def _is_well_formed(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _arm_table(reading: str, rows: _Rows, arm: Arm) -> pa.Table:
    draws, n = arm.values.shape
    size = draws * n

    def constant(text: str) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(size, dtype=np.int32)), pa.array([text], pa.string()))

    def tiled(column: pa.Array) -> pa.Array:
        distinct = column.dictionary_encode()
        return pa.DictionaryArray.from_arrays(pa.array(np.tile(np.asarray(distinct.indices), draws)), distinct.dictionary)

    def repeated(column: pa.Array) -> pa.Array:
        return pa.concat_arrays([column] * draws) if draws else column.slice(0, 0)

    thresholds = pa.nulls(size, pa.float64()) if arm.thresholds is None else pa.array(np.repeat(np.asarray(arm.thresholds, dtype=np.float64), n))
    return pa.Table.from_arrays(
        [
            constant(reading),
            constant(arm.name),
            pa.array(np.repeat(np.arange(draws, dtype=np.int32), n)),
            constant(arm.condition),
            tiled(rows.prompts),
            pa.array(arm.values.ravel()),
            thresholds,
            repeated(rows.tokens),
            tiled(rows.groups),
            repeated(rows.labels) if arm.labels is None else pa.array(arm.labels.ravel()),
            tiled(rows.digests),
            pa.nulls(size, TEXT) if rows.pairs is None else tiled(rows.pairs),
        ],
        schema=SCHEMA,
    )
