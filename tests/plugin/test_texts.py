"""Texts of prompts stay out of the evidence unless asked for, and scores of tokens have no say in verdicts."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from tests.agreement.tiny_models import save_tiny, tiny_tokenizer
from tests.plugin.runs import run
from tests.plugin.test_verdicts import AUDITS
from tests.plugin.toy import TOY
from tests.unit.test_report_heat import CELL

MARKER = "xylograph"
MARKED = TOY.replace("says{mark}", f"{MARKER}{{mark}}")


def holding(folder, text):
    """Files of a bundle that hold the text, in the bytes of the file or in a cell of the table."""
    cells = {path: str(pq.read_table(path).to_pydict()) for path in folder.rglob("*.parquet")}
    return {path.name for path in folder.rglob("*") if path.is_file() and (text.encode() in path.read_bytes() or text in cells.get(path, ""))}


def spread_over_tokens(text):
    """As it would stand in a list of single letters."""
    return str(list(text))[1:-1]


def drawn(folder):
    """The texts in the cells of the report's strips, joined."""
    return "".join(text for _, text, _ in CELL.findall((folder / "report.html").read_text("utf-8")))


def test_redacted_evidence_holds_no_text_and_shown_evidence_does(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=MARKED + AUDITS)
    redacted = run(pytester, tiny_folder, report="html")
    assert redacted.verdicts == {"audit_reads": "PASS"}
    assert not holding(redacted.folder, MARKER)
    assert not holding(redacted.folder, spread_over_tokens(MARKER))
    assert set(drawn(redacted.folder)) == {"▢"}
    assert {path.name for path in redacted.folder.iterdir()} >= {"tokens.parquet", "report.html", "samples.parquet"}
    tokens = redacted.bundle.tokens()
    assert tokens.num_rows > 100
    assert tokens["text"].null_count == tokens.num_rows
    verdicts, scores = redacted.bundle.run.claims, tokens["score"]

    pytester.makeini("[pytest]\naudit_texts = shown")
    shown = run(pytester, tiny_folder, report="html")
    assert holding(shown.folder, spread_over_tokens(MARKER)) == {"tokens.parquet"}
    assert drawn(shown.folder).count(MARKER) == 5
    assert shown.bundle.tokens()["score"] == scores
    assert shown.bundle.run.claims == verdicts
    assert run(pytester, tiny_folder, "--audit-texts=redacted").bundle.tokens().equals(tokens)


def test_the_read_token_has_the_score_of_the_reading(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=TOY + AUDITS)
    bundle = run(pytester, tiny_folder).bundle
    values = {row["prompt"]: row["value"] for row in bundle.samples(arm="detector").to_pylist()}
    highest = sorted(values, key=lambda prompt: (-values[prompt], prompt))[:5]
    read = [row for row in bundle.tokens().to_pylist() if row["read"]]
    assert [(row["rank"], row["prompt"]) for row in read] == list(enumerate(highest))
    assert [row["score"] for row in read] == pytest.approx([values[prompt] for prompt in highest], rel=1e-5, abs=1e-6)
    assert bundle.volatile.seconds["token scores"] > 0


def test_an_unknown_mode_is_wrong_usage(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=TOY + AUDITS)
    wrong = run(pytester, tiny_folder, "--audit-texts=all")
    assert wrong.result.ret == pytest.ExitCode.USAGE_ERROR
    wrong.result.stderr.fnmatch_lines(["*--audit-texts all: write redacted or shown*"])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_tokens_that_can_not_be_scored_are_named_and_change_no_verdict(pytester, tmp_path):
    folder = save_tiny(tmp_path / "loud")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][tiny_tokenizer().convert_tokens_to_ids("~")] = 1e30
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    save_file({"direction": np.full(32, 1e280)}, pytester.path / "huge.safetensors")
    pytester.makepyfile(
        audit_loud="""
import mi_audit as mi
loud = mi.suite([{"id": f"p{i}", "text": f"{i} says it~", "word": "says"} for i in range(60)], name="loud")
huge = mi.direction("huge", "huge.safetensors", at=mi.at("resid_post", depth=0.5), tokens=mi.last_of("word"), threshold=1e300)

@mi.audit(about="instrument")
def audit_quiet(model):
    assert model.read(huge, loud).rate() <= 0.2
"""
    )
    done = run(pytester, folder, report="html")
    assert done.verdicts == {"audit_quiet": "PASS"}
    assert done.result.ret == 0
    done.result.stdout.fnmatch_lines(["no token scores of huge on loud: DetectorError: huge: its score of token * of prompt * is not finite*"])
    (reading,) = done.bundle.run.readings
    assert "is not finite" in reading.tokens_error
    assert done.bundle.tokens().num_rows == 0
    assert "could not be computed, which no claim depends on" in (done.folder / "report.html").read_text()
