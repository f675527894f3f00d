"""What a run says, through pytest, on a model and a detector that are known."""

import xml.etree.ElementTree as ET

from tests.plugin.runs import run
from tests.plugin.toy import TOY

AUDITS = """
@mi.audit(about="instrument")
def audit_reads(model):
    assert model.read(probe, toy["test"]).auroc() >= 0.8
"""


def test_pass_fail_and_inconclusive_each_have_an_exit_code_and_a_form_of_their_own(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=TOY + AUDITS)
    passed = run(pytester, tiny_folder)
    assert passed.result.ret == 0
    assert passed.verdicts == {"audit_reads": "PASS"}

    pytester.makepyfile(
        audit_toy=TOY
        + AUDITS
        + """
@mi.audit(about="instrument")
def audit_undecided(model):
    assert model.read(probe, toy["test"]).rate() >= 0.48
"""
    )
    undecided = run(pytester, tiny_folder, "--junitxml=junit.xml")
    assert undecided.result.ret == 10
    undecided.result.stdout.fnmatch_lines(["*.I*", "*INCONCLUSIVE*", "*1 passed, 1 inconclusive*"])
    case = next(case for case in ET.parse(pytester.path / "junit.xml").iter("testcase") if case.get("name") == "audit_undecided")
    assert "INCONCLUSIVE" in case.find("skipped").get("message")

    pytester.makepyfile(
        audit_toy=TOY
        + AUDITS
        + """
@mi.audit(about="instrument")
def audit_fails(model):
    reading = model.read(probe, toy["test"])
    assert reading.auroc() <= 0.6
    assert reading.rate() <= 0.9
"""
    )
    failed = run(pytester, tiny_folder)
    assert failed.result.ret == 1
    failed.result.stdout.fnmatch_lines(["*FAIL: toy on toy*auroc() <= 0.6*", "*interval*", "*threshold*", "*worst*prompts*"])
    claims = {claim.text: claim.verdict for claim in failed.bundle.run.claims if claim.audit.endswith("audit_fails")}
    assert claims == {"auroc() <= 0.6": "FAIL", "rate() <= 0.9": "PASS"}, "the claim after the failed assert is decided too"


def test_a_claim_about_the_model_rests_on_its_instrument(pytester, tiny_folder):
    other = "\nother = mi.suite([{'id': f'q{i}', 'text': f'walnut {i} b says.'} for i in range(60)], name='other')\n"
    claim = """
@mi.audit()
def audit_model(model):
    assert model.read(probe, other).rate() <= 0.5
"""
    instrument = """
@mi.audit(about="instrument")
def audit_instrument(model):
    reading = model.read(probe, toy["test"])
    assert {}
"""
    reads, fires, silent = "reading.auroc() >= 0.8", "reading.recall() >= 0.5", "reading.rate() <= 0.9"
    blind = TOY.replace('mi.false_positive_rate(0.05, on=toy["calibration"])', "1e9")
    assert blind != TOY
    cases = [
        (TOY, None, "INCONCLUSIVE"),
        (TOY, [silent], "INCONCLUSIVE"),
        (TOY, [reads], "INCONCLUSIVE"),
        (TOY, [reads, fires], "PASS"),
        (TOY, [reads, fires, "reading.auroc() <= 0.6"], "INCONCLUSIVE"),
        (blind, [reads], "INCONCLUSIVE"),
        (blind, [reads, fires], "INCONCLUSIVE"),
    ]
    for toy, claims, expected in cases:
        pytester.makepyfile(audit_toy=toy + other + claim + (instrument.format("\n    assert ".join(claims)) if claims else ""))
        assert run(pytester, tiny_folder).verdicts["audit_model"] == expected, (toy is blind, claims)


def test_a_claim_of_absence_passes_and_is_written(pytester, tiny_folder):
    pytester.makepyfile(
        audit_toy=TOY
        + """
import random
coin = mi.suite([{"text": f"{i} text", "label": random.Random(i).random() < 0.5} for i in range(400)], name="coin")
blind = mi.probe("blind", method="difference_of_means", at=mi.at("resid_post", depth=0.5), fit=coin["train"])

@mi.audit(about="instrument")
def audit_absent(model):
    assert model.read(blind, coin["test"]).auroc() <= 0.7
"""
    )
    done = run(pytester, tiny_folder)
    assert done.verdicts == {"audit_absent": "PASS"}
    assert done.result.ret == 0


def test_a_partial_run_can_not_gate(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=TOY + AUDITS)
    for arguments in (["-k", "reads"], ["-x"], ["--lf"], ["--audit-limit=100"], ["audit_toy.py::audit_reads"]):
        partial = run(pytester, tiny_folder, *arguments)
        assert partial.result.ret == 13, arguments
        assert partial.bundle.run.partial
        partial.result.stdout.fnmatch_lines(["*PARTIAL*"])


def test_an_audit_with_other_fixtures_runs_unplanned_and_can_not_gate(pytester, tiny_folder):
    pytester.makepyfile(
        audit_toy=TOY
        + """
@mi.audit(about="instrument")
def audit_unplanned(model, tmp_path):
    assert model.read(probe, toy["test"]).auroc() >= 0.8
"""
    )
    unplanned = run(pytester, tiny_folder)
    assert unplanned.verdicts == {"audit_unplanned": "INCONCLUSIVE"}
    assert unplanned.result.ret == 10


def test_parametrised_audits_are_planned_one_by_one(pytester, tiny_folder):
    pytester.makepyfile(
        audit_toy="import pytest\n"
        + TOY
        + """
@pytest.mark.parametrize("least", [0.6, 0.8])
@mi.audit(about="instrument")
def audit_reads(model, least):
    assert model.read(probe, toy["test"]).auroc() >= least
"""
    )
    both = run(pytester, tiny_folder)
    assert both.result.ret == 0
    assert [claim.threshold for claim in both.bundle.run.claims] == [0.6, 0.8]


def test_same_command_same_seed_equal_evidence(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=TOY + AUDITS)
    first = run(pytester, tiny_folder)
    files = {path.name: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    evidence = first.bundle.run
    second = run(pytester, tiny_folder)
    assert second.bundle.run == evidence
    for path in second.folder.rglob("*"):
        if path.is_file() and path.name != "evidence.json":
            assert path.read_bytes() == files[path.name], path.name


def test_evidence_that_can_not_be_written_is_exit_11_and_spares_what_is_there(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=TOY + AUDITS)
    (pytester.path / "evidence").mkdir()
    (pytester.path / "evidence" / "mine.txt").write_text("mine")
    done = run(pytester, tiny_folder)
    assert done.result.ret == 11
    done.result.stdout.fnmatch_lines(["*EVIDENCE NOT WRITTEN*"])
    assert [path.name for path in done.folder.iterdir()] == ["mine.txt"]
