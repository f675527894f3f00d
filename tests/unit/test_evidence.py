"""Bundles are written whole or not at all, equal for equal evidence, and an edited one is refused."""

import errno
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mi_audit.errors import EvidenceError
from mi_audit.evidence import parquet, store, tables
from mi_audit.evidence.samples import SCHEMA, Arm, SampleTable
from mi_audit.stats.verdict import Verdict
from tests.unit import bundles


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return bundles.realistic().write(tmp_path_factory.mktemp("bundle") / "out")


@pytest.fixture
def bundle(written, tmp_path):
    return shutil.copytree(written, tmp_path / "out")


def contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def rewritten(bundle, change):
    """Edit evidence.json as somebody would who keeps its form."""
    import rfc8785

    path = bundle / "evidence.json"
    data = json.loads(path.read_bytes())
    change(data["evidence"])
    path.write_bytes(rfc8785.dumps(data) + b"\n")


def test_what_was_written_is_read(bundle):
    content = bundles.realistic()
    read = store.read(bundle)
    assert read.run.model_copy(update={"tables": {}}) == content.run
    assert read.volatile == content.volatile
    assert read.run.tables["samples.parquet"].rows == pq.read_metadata(bundle / "samples.parquet").num_rows


def test_equal_evidence_gives_equal_bytes_and_times_stay_apart(written, tmp_path):
    content = bundles.realistic()
    content.volatile = bundles.volatile(run_id="another", started="2027-01-01T00:00:00Z", seconds={"load": 9.0})
    other = content.write(tmp_path / "elsewhere")
    first, second = contents(written), contents(other)
    changed = {name for name in first if first[name] != second[name]}
    assert first.keys() == second.keys()
    assert changed == {"evidence.json"}
    assert json.loads(first["evidence.json"])["evidence"] == json.loads(second["evidence.json"])["evidence"]


def test_claims_can_be_recomputed_from_the_samples(bundle):
    read = store.read(bundle)
    claim = next(claim for claim in read.run.claims if claim.quantity == "auroc")
    rows = read.samples(measurement=claim.reading, arm="detector", columns=["value", "label"])
    values, labels = np.asarray(rows["value"]), np.asarray(rows["label"])
    ranks = values.argsort().argsort() + 1
    positives = labels.sum()
    auroc = (ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * (~labels).sum())
    assert auroc == pytest.approx(claim.value, abs=1e-12)


def test_the_parquet_is_as_promised(bundle):
    file = pq.ParquetFile(bundle / "samples.parquet")
    group = file.metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    named = {column.path_in_schema: column for column in columns}
    assert {column.compression for column in columns} == {"ZSTD"}
    assert named["prompt"].dictionary_page_offset is not None
    assert [file.schema_arrow.names[column.column_index] for column in group.sorting_columns] == list(tables.sorted_by("samples.parquet"))
    assert {key for key in file.metadata.metadata if key.startswith(b"mi_audit")} == {b"mi_audit.schema_version", b"mi_audit.plan_digest"}
    rows = pq.read_table(bundle / "samples.parquet", columns=["measurement", "arm", "draw", "prompt"]).to_pylist()
    keys = [(row["measurement"], row["arm"], row["draw"], row["prompt"]) for row in rows]
    assert keys == sorted(keys)


def test_order_of_adding_does_not_matter():
    def table(order, reverse):
        samples = SampleTable()
        ids = np.array(["b", "a", "c"])[order]
        values = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])[:, order]
        arms = [Arm("detector", values[:1]), Arm("null: shuffled labels", values)]
        for reading in sorted(["r2", "r1"], reverse=reverse):
            samples.add(
                reading,
                prompt_ids=list(ids),
                digests=list(ids),
                groups=list(ids),
                labels=np.array([True, False, True])[order],
                token_index=np.array([3, 4, 5])[order],
                arms=arms[:: -1 if reverse else 1],
            )
        return samples.table()

    assert table([0, 1, 2], False).equals(table([2, 0, 1], True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": ["a", "a"]}, "occurs twice"),
        ({"digests": ["a"]}, "digests has 1 rows for 2"),
        ({"groups": ["a", "\ud800"]}, "no well-formed text"),
        ({"arms": [Arm("detector", np.array([[1.0, np.nan]]))]}, "not finite"),
        ({"arms": [Arm("detector", np.array([1.0, 2.0]))]}, "shape"),
        ({"arms": [Arm("detector", np.ones((2, 2)), np.ones(1))]}, "threshold for each"),
        ({"arms": [Arm("detector", np.ones((1, 2)))] * 2}, "an arm occurs twice"),
    ],
)
def test_samples_that_no_claim_can_rest_on_are_refused(change, message):
    good = {"prompt_ids": ["a", "b"], "digests": ["a", "b"], "groups": ["a", "b"], "labels": None, "token_index": [0, 0], "arms": []}
    with pytest.raises(EvidenceError, match=message):
        SampleTable().add("reading", **good | change)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("before", [True, False])
def test_a_failing_disk_leaves_what_was_there_and_nothing_else(bundle, monkeypatch, function, error, before):
    if not before:
        shutil.rmtree(bundle)
    old = contents(bundle)
    calls = 0
    real = getattr(os, function)

    def failing(*arguments):
        nonlocal calls
        calls += 1
        if calls == (2 if before and function == "replace" else 1):
            raise OSError(error, os.strerror(error))
        return real(*arguments)

    monkeypatch.setattr(os, function, failing)
    with pytest.raises(EvidenceError, match=str(bundle)):
        bundles.passing().write(bundle)
    assert contents(bundle) == old
    assert [path.name for path in bundle.parent.iterdir()] == ([bundle.name] if before else [])


def test_a_previous_bundle_is_replaced_and_nothing_else_ever(bundle, tmp_path):
    bundles.passing().write(bundle)
    assert len(store.read(bundle).run.audits) == 2
    assert [path.name for path in tmp_path.iterdir()] == [bundle.name]

    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(EvidenceError, match=r"notes\.txt"):
        bundles.passing().write(bundle)
    full = tmp_path / "thesis"
    full.mkdir()
    (full / "chapter.tex").write_text("mine")
    with pytest.raises(EvidenceError, match=r"chapter\.tex"):
        bundles.passing().write(full)
    link = tmp_path / "link"
    link.symlink_to(full)
    with pytest.raises(EvidenceError, match="not a folder"):
        bundles.passing().write(link)
    assert (full / "chapter.tex").read_text() == "mine"


@pytest.mark.parametrize("name", ["../x.safetensors", "detectors/../../x", "/etc/x", "x.safetensors", "detectors/a/b"])
def test_detector_files_stay_inside(tmp_path, name):
    content = bundles.passing()
    content.files[name] = b""
    with pytest.raises(EvidenceError, match="can't be part"):
        content.write(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'{"evidence":', b'{"evidence":{},"evidence":', "'evidence' occurs twice"),
        (b'"alpha":0.025', b'"alpha":NaN', "NaN is no JSON number"),
        (b'"alpha":0.025', b'"alpha":1e999', "finite number"),
        (b'"seed":20260101', b'"seed":9007199254740993', "beyond"),
        (b'"seed":20260101', b'"seed":"20260101"', r"plan\.seed: Input should be a valid integer"),
        (b'"seed":20260101', b'"seed":20260101.0', r"plan\.seed"),
        (b'"seed":20260101', b'"seed":20260101,"note":"x"', r"plan\.note: Extra inputs"),
        (b'"schema_version":"1.0"', b'"schema_version": "1.0"', "not canonical JSON"),
        (b'"partial":[]', b'"partial":' + b"[" * 5_000 + b"]" * 5_000, "nested deeper"),
        (b"}\n", b"", "not JSON"),
        (b"smollm2", b"smollm\xff", "not JSON"),
    ],
)
def test_malformed_json_is_refused(bundle, old, new, message):
    path = bundle / "evidence.json"
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1) if old != b"}\n" else raw[:-2])
    with pytest.raises(EvidenceError, match=message):
        store.read(bundle)


def _set(kind, index, **values):
    return lambda run: run[kind][index].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.update(verdict="PASS"), "better than the worst audit"),
        (lambda run: run.update(exit_code=0), "its exit code is 0; its verdicts, in a run that is whole, give 1"),
        (_set("audits", 4, verdict="PASS"), "better than the worst of its claims"),
        (lambda run: next(claim for claim in run["claims"] if claim["verdict"] == "FAIL").update(verdict="PASS"), "is not all >= 0.8"),
        (_set("claims", 1, verdict="PASS", reasons=[]), "did not pass every claim about itself"),
        (lambda run: run["audits"].pop(), "planned and"),
        (lambda run: run["audits"][0].update(claims=[], verdict="ERROR", error="x"), "without being listed"),
        (lambda run: run["claims"][2]["nulls"][0].update(p=0.001), r"not \(k \+ 1\)/\(B \+ 1\)"),
        (lambda run: run["claims"][2].update(nulls=[]), "PASS without a null"),
        (lambda run: run["claims"][2].update(alpha=0.2), "the plan says 0.025"),
        (lambda run: run["claims"][2].update(reading=bundles.sha("none")), "not recorded"),
        (lambda run: run["model"].update(dtype="bfloat16"), "scores in bfloat16 that were not compared with float32"),
        (_set("readings", 0, spread=0.1), "a spread of 0.1 on a sample of None"),
        (lambda run: run["claims"][2].update(n=run["claims"][2]["n"] - 1), "claims.parquet is not that of the records"),
        (lambda run: run["claims"][2].update(n=10**6), "counts 1000000 prompts"),
        (lambda run: run["claims"][2].update(about="model" if run["claims"][2]["about"] == "instrument" else "instrument"), "is about the"),
        (lambda run: run["claims"][2].update(suite="another"), "names another detector or suite"),
        (lambda run: run.update(model=None), "but no model was loaded"),
        (lambda run: (run["plan"].update(alpha=0.2), [claim.update(alpha=0.2) for claim in run["claims"]]), "decided at alpha 0.2"),
        (lambda run: run["detectors"].append(run["detectors"][0]), "is recorded 2 times"),
        (_set("readings", 0, spread=0.1, spread_n=10**6), "prompts, and a spread on a sample of 1000000"),
        (lambda run: run["tables"]["samples.parquet"].update(rows=3), "samples.parquet is not the table"),
        (lambda run: run["detectors"][0].update(file="detectors/../evidence.json"), "can't be part"),
    ],
)
def test_records_that_contradict_each_other_are_refused(bundle, change, message):
    rewritten(bundle, change)
    with pytest.raises(EvidenceError, match=message):
        store.read(bundle)


@pytest.mark.parametrize("name", [*tables.NAMES, "evidence.json", "detectors/truth.safetensors"])
def test_a_flipped_bit_is_found(bundle, name):
    path = bundle / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(EvidenceError):
        store.read(bundle)


def test_edited_samples_are_found(bundle):
    path = bundle / "samples.parquet"
    table = pq.read_table(path)
    values = np.array(table["value"])
    values[5] += 1e-9
    pq.write_table(table.set_column(table.schema.get_field_index("value"), table.schema.field("value"), [values]), path)
    with pytest.raises(EvidenceError, match="rows were changed"):
        store.read(bundle)


@pytest.mark.parametrize("reading", ["lost", "added"])
def test_samples_that_are_not_those_of_the_readings_are_refused(tmp_path, reading):
    content = bundles.realistic()
    every = dict(content.samples.readings)
    first = min(every)
    content.samples = SampleTable()
    for name, rows in every.items():
        if name != first or reading == "added":
            content.samples.adopt(name, rows)
    if reading == "added":
        name = pa.array([bundles.sha("more")] * every[first].num_rows).dictionary_encode()
        content.samples.adopt(bundles.sha("more"), every[first].set_column(0, SCHEMA.field(0), name))
    with pytest.raises(EvidenceError, match="the sample table contradicts the records"):
        content.write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_rows_have_one_digest_whoever_wrote_them(bundle):
    path = bundle / "samples.parquet"
    before = parquet.measure(path)
    pq.write_table(pq.read_table(path), path, compression="snappy", row_group_size=777, use_dictionary=False)
    after = parquet.measure(path)
    assert (after.rows, after.digest) == (before.rows, before.digest)
    with pytest.raises(EvidenceError, match="its SHA-256 is not"):
        store.read(bundle)


def test_missing_and_foreign_files_are_refused(bundle):
    (bundle / "extra.html").write_text("x")
    with pytest.raises(EvidenceError, match=r"extra\.html is no part"):
        store.read(bundle)
    (bundle / "extra.html").rename(bundle / "report.csv")
    with pytest.raises(EvidenceError, match=r"report\.csv is no part"):
        store.read(bundle)
    (bundle / "report.csv").rename(bundle / "report.html")
    store.read(bundle)
    (bundle / "detectors" / "truth.safetensors").unlink()
    with pytest.raises(EvidenceError, match="'truth' are missing"):
        store.read(bundle)
    (bundle / "claims.parquet").unlink()
    with pytest.raises(EvidenceError, match="no such file"):
        store.read(bundle)


def test_a_wrong_pass_is_not_even_written(tmp_path):
    content = bundles.realistic()
    claims = [claim.model_copy(update={"verdict": Verdict.PASS}) if claim.verdict is Verdict.FAIL else claim for claim in content.run.claims]
    content.run = content.run.model_copy(update={"claims": tuple(claims)})
    with pytest.raises(EvidenceError, match="is PASS, but its interval"):
        content.write(tmp_path / "out")
    assert not list(tmp_path.iterdir())
