"""The token table keeps what it may and no more, and one that was edited or does not fit the records is refused."""

import hashlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mi_audit.errors import EvidenceError
from mi_audit.evidence import parquet, store, tables
from mi_audit.evidence.stretches import stretches
from mi_audit.evidence.tokens import MAX_TEXT, MAX_TOKENS, PROMPTS, SCHEMA, TokenTable
from tests.unit import bundles
from tests.unit.test_evidence import rewritten


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return bundles.passing().write(tmp_path_factory.mktemp("bundle") / "out")


@pytest.fixture
def bundle(written, tmp_path):
    return shutil.copytree(written, tmp_path / "out")


def long_prompt(*, texts_shown):
    table, n = TokenTable(texts_shown=texts_shown), 700
    table.add("r", 0, "p", texts=["x" * 70] * n, scores=np.arange(n) / 2, read=np.arange(n) == 699, sinks=np.arange(n) == 0)
    return table.table()


def test_of_a_long_prompt_the_last_tokens_and_of_a_long_text_its_start():
    rows = long_prompt(texts_shown=True).to_pylist()
    assert len(rows) == MAX_TOKENS
    assert [rows[0]["position"], rows[-1]["position"]] == [700 - MAX_TOKENS, 699]
    assert [row["score"] for row in rows] == [row["position"] / 2 for row in rows]
    assert [row["read"] for row in rows] == [False] * (MAX_TOKENS - 1) + [True]
    assert {row["text"] for row in rows} == {"x" * (MAX_TEXT - 1) + "…"}
    assert {row["text"] for row in long_prompt(texts_shown=False).to_pylist()} == {None}


def test_order_of_adding_does_not_matter():
    def table(order):
        tokens = TokenTable(texts_shown=True)
        for reading, rank in order:
            tokens.add(reading, rank, f"p{rank}", texts=["a", "b"], scores=np.array([1.0, rank]), read=np.array([False, True]), sinks=np.zeros(2, bool))
        return tokens.table()

    first, second = table([("a", 0), ("a", 1), ("b", 0)]), table([("b", 0), ("a", 1), ("a", 0)])
    assert first.equals(second)
    assert tables.digest_of(first) == tables.digest_of(second)


def test_what_was_added_is_read(bundle):
    read = store.read(bundle)
    assert read.tokens().schema.remove_metadata().equals(SCHEMA)
    scores = {(row["measurement"], row["prompt"]): row["value"] for row in read.samples(arm="detector").to_pylist()}
    parts = list(stretches(read.tokens(), "measurement", "prompt"))
    assert len(parts) == PROMPTS * len(read.run.readings)
    for key, part in parts:
        assert part.filter(part["read"])["score"].to_pylist() == [scores[key]]
    group = pq.ParquetFile(bundle / "tokens.parquet").metadata.row_group(0)
    assert [group.column(column.column_index).path_in_schema for column in group.sorting_columns] == ["measurement", "rank", "position"]


def replaced(table, name, values):
    field = table.schema.field(name)
    column = pa.array(values, pa.string()).dictionary_encode() if pa.types.is_dictionary(field.type) else pa.array(values, field.type)
    return table.set_column(table.schema.get_field_index(name), field, column)


def changed(name, row, value):
    def change(table):
        values = table[name].to_pylist()
        values[row] = value
        return replaced(table, name, values)

    return change


CHANGES = {
    "a score": (changed("score", 5, 1.0), None),
    "a mark": (changed("read", 5, True), None),
    "a text": (changed("text", 5, "other"), None),
    "a score that is not finite": (changed("score", 5, np.inf), "not finite"),
    "a text left out": (changed("text", 5, None), "texts are shown"),
    "a long text": (changed("text", 5, "x" * 65), "longer than 64"),
    "a gap": (changed("position", 5, 99), "consecutive"),
    "a row less": (lambda table: table.slice(24), "score highest, each once"),
    "a rank": (lambda table: replaced(table, "rank", np.maximum(np.asarray(table["rank"]), 1).astype(np.int32)), "score highest, each once"),
    "one prompt twice": (lambda table: replaced(table, "prompt", ["p"] * table.num_rows), "score highest, each once"),
    "another reading": (lambda table: replaced(table, "measurement", ["0" * 64] * table.num_rows), "which is not recorded"),
    "a column": (lambda table: table.append_column("more", table["score"]), "its columns are"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_an_edited_table_is_found_and_one_that_does_not_fit_is_refused_with_right_digests_too(bundle, change, message):
    path = bundle / "tokens.parquet"
    run = store.read(bundle).run
    parquet.save(path, change(pq.read_table(path)), sorted_by=(), schema_version=run.schema_version, plan_digest=run.plan.digest)
    with pytest.raises(EvidenceError, match=r"tokens\.parquet is not the table that"):
        store.read(bundle)
    found = parquet.measure(path)
    rewritten(bundle, lambda run: run["tables"]["tokens.parquet"].update(rows=found.rows, digest=found.digest, sha256=found.sha256))
    if message is None:
        store.read(bundle)
    else:
        with pytest.raises(EvidenceError, match=message):
            store.read(bundle)


def test_more_rows_than_readings_can_have_are_not_read(bundle):
    path = bundle / "tokens.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table] * 40), path)
    sha256, found = hashlib.sha256(path.read_bytes()).hexdigest(), parquet.measure(path)
    rewritten(bundle, lambda run: run["tables"]["tokens.parquet"].update(rows=found.rows, digest=found.digest, sha256=sha256))
    with pytest.raises(EvidenceError, match=r"has \d+ rows, more than its readings can have"):
        store.read(bundle)


def test_texts_in_redacted_evidence_are_not_even_written(tmp_path):
    content = bundles.passing()
    content.run = content.run.model_copy(update={"texts_shown": False})
    with pytest.raises(EvidenceError, match="texts are redacted, the table does not agree"):
        content.write(tmp_path / "out")
    assert not list(tmp_path.iterdir())
