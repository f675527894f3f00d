"""Audits dealt out to several processes: the same evidence as from one, also where a process dies."""

import json
from pathlib import Path

import pytest

from tests.plugin.runs import Run, run
from tests.plugin.toy import TOY

pytest.importorskip("xdist")

AUDITS = """
import os, pathlib, signal
other = mi.suite([{'id': f'q{i}', 'text': f'walnut {i} b says.'} for i in range(60)], name='other')
second = mi.probe("second", method="logistic", at=mi.at("resid_post", depth=0.5), fit=toy["train"], threshold=0.0)
bodies = raising = 0

@mi.audit(about="instrument")
def audit_reads(model):
    assert model.read(probe, toy["test"]).auroc() >= 0.8
    assert model.read(probe, toy["test"]).recall() >= 0.5

@mi.audit()
def audit_model(model):
    assert model.read(probe, other).rate() <= 0.5

@mi.audit(about="instrument")
def audit_second(model):
    assert model.read(second, toy["test"]).auroc() >= 0.8
    assert model.read(second, toy["test"]).recall() >= 0.5
    assert model.read(probe, toy["test"]).auroc() <= 0.6 or True

@mi.audit()
def audit_model_second(model):
    assert model.read(second, other).rate() <= 0.5

@mi.audit(about="instrument")
def audit_dies(model):
    global bodies
    bodies += 1
    marker = pathlib.Path(__file__).with_name("marker")
    if bodies == 2 and (DEATHS == "always" or not marker.exists()):
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    assert model.read(probe, toy["test"]).auroc() >= 0.7

@mi.audit(about="instrument")
def audit_undecided(model):
    assert model.read(probe, toy["test"]).rate() >= 0.48

@mi.audit(about="instrument")
def audit_raises(model):
    global raising
    raising += 1
    assert model.read(second, toy["test"]).accuracy() >= 0.5
    if raising == 2:
        raise KeyError("only in the run")
"""


READS = """
@mi.audit(about="instrument")
def audit_reads(model):
    assert model.read(probe, toy["test"]).auroc() >= 0.5
"""


def workers(pytester: pytest.Pytester, model: Path, *arguments: str) -> Run:
    folder = pytester.path / "evidence"
    result = pytester.runpytest_subprocess(f"--audit-model={model}", f"--audit-out={folder}", "--audit-format=none", "--audit-no-cache", *arguments)
    assert [path.name for path in pytester.path.glob(".*.parts")] == []
    return Run(result, folder)


def told(done: Run) -> tuple[object, dict[str, bytes], list[str]]:
    """What must not depend on how many processes ran: the evidence section, the other files, the closing lines."""
    files = {str(path.relative_to(done.folder)): path.read_bytes() for path in done.folder.rglob("*") if path.is_file()}
    lines = done.result.stdout.lines
    start = next(place for place, line in enumerate(lines) if line.startswith("===") and " mi-audit " in line)
    closing = [line for line in lines[start + 1 :] if not line.startswith("===")]
    return json.loads(files.pop("evidence.json"))["evidence"], files, closing[: closing.index(f"evidence: {done.folder}")]


@pytest.fixture
def alone(pytester, tiny_folder):
    """The run in one process, in which nothing dies."""
    pytester.makepyfile(audit_toy=TOY + "\nDEATHS = 'once'\n" + AUDITS)
    (pytester.path / "marker").touch()
    done = run(pytester, tiny_folder, "-n0", "--audit-no-cache")
    assert done.result.ret == 1
    expected = {"reads": "PASS", "model": "INCONCLUSIVE", "second": "FAIL", "model_second": "INCONCLUSIVE", "dies": "PASS", "undecided": "INCONCLUSIVE"}
    assert done.verdicts == {f"audit_{name}": verdict for name, verdict in (expected | {"raises": "ERROR"}).items()}
    return told(done)


def test_workers_leave_the_evidence_of_one_process_though_one_of_them_is_killed(pytester, tiny_folder, alone):
    killed = (pytester.path / "marker").unlink() or workers(pytester, tiny_folder, "-n2", "--junitxml=junit.xml")
    assert told(killed) == alone
    assert killed.result.ret == 1
    killed.result.stdout.fnmatch_lines(["mi-audit plan*", "*R*", "*1 rerun*"])
    assert sum(line.startswith("mi-audit plan") for line in killed.result.stdout.lines) == 1
    assert "it is run again" in (pytester.path / "junit.xml").read_text()


def test_loadgroup_keeps_the_model_in_one_worker(pytester, tiny_folder, alone):
    grouped = workers(pytester, tiny_folder, "-n2", "--dist=loadgroup")
    assert told(grouped) == alone
    assert grouped.result.ret == 1
    assert sum("reading activations" in line for line in grouped.result.stderr.lines) == 1


@pytest.mark.parametrize("dist", ["load", "loadgroup"])
def test_an_audit_that_always_kills_its_worker_is_an_error_and_harms_no_other(pytester, tiny_folder, dist):
    sound = AUDITS[: AUDITS.index('@mi.audit(about="instrument")\ndef audit_undecided')].replace("auroc() <= 0.6 or True", "auroc() >= 0.6")
    on_second = sound.replace('read(probe, toy["test"]).auroc() >= 0.7', 'read(second, toy["test"]).auroc() >= 0.7')
    assert sound != AUDITS and on_second != sound
    pytester.makepyfile(audit_toy=TOY + "\nDEATHS = 'always'\n" + on_second)
    done = workers(pytester, tiny_folder, "-n2", f"--dist={dist}")
    assert done.result.ret == 12
    assert done.verdicts == {
        "audit_reads": "PASS",
        "audit_model": "PASS",
        "audit_second": "PASS",
        "audit_model_second": "INCONCLUSIVE",
        "audit_dies": "ERROR",
    }
    assert done.error("audit_dies") == "3 workers died while they ran this audit"
    assert not [path for path in done.folder.parent.iterdir() if path.name.endswith(".parts")]


def test_a_death_among_several_files_ends_with_the_whole(pytester, tiny_folder):
    """pytest-xdist itself waits for ever for the replacement of a worker that had finished a file."""
    reads = TOY + READS
    dies = AUDITS[AUDITS.index("import os") : AUDITS.index("other = ")] + "bodies = 0\nDEATHS = 'once'\n"
    body = AUDITS[AUDITS.index('@mi.audit(about="instrument")\ndef audit_dies') : AUDITS.index('@mi.audit(about="instrument")\ndef audit_undecided')]
    pytester.makepyfile(audit_1=reads, audit_2=reads, audit_3=TOY + dies + body)
    done = workers(pytester, tiny_folder, "-n1", "--dist=loadfile")
    assert done.result.ret == 0
    assert [str(audit.verdict) for audit in done.bundle.run.audits] == ["PASS"] * 3
    done.result.stdout.fnmatch_lines(["*1 rerun*"])


def test_a_results_folder_that_can_not_be_written_is_exit_11(pytester, tiny_folder):
    pytester.makepyfile(audit_toy=TOY + READS)
    (pytester.path / "taken").touch()
    result = pytester.runpytest_subprocess(f"--audit-model={tiny_folder}", f"--audit-out={pytester.path / 'taken' / 'evidence'}", "-n2")
    assert result.ret == 11
    result.stdout.fnmatch_lines(["EVIDENCE NOT WRITTEN: *taken is not a folder*"])


def test_what_stops_a_run_early_leaves_it_partial(pytester, tiny_folder):
    pytester.makepyfile(
        audit_toy=TOY
        + """
@mi.audit(about="instrument")
def audit_fails(model):
    assert model.read(probe, toy["test"]).auroc() <= 0.6
"""
        + "".join(f"\n@mi.audit(about='instrument')\ndef audit_{n}(model):\n    assert model.read(probe, toy['test']).auroc() >= 0.{n}\n" for n in range(5, 9))
    )
    done = workers(pytester, tiny_folder, "-n1", "-x")
    assert done.result.ret == 1
    assert done.bundle.run.partial == ("-x or --maxfail",)
    assert done.verdicts["audit_fails"] == "FAIL"
    assert done.error("audit_8") == "the audit was planned but did not run"


def test_planning_takes_no_workers_and_a_different_plan_stops_the_run(pytester, tiny_folder):
    source = TOY + "\n@mi.audit(about='instrument')\ndef audit_one(model):\n    assert model.read(probe, toy['test']).auroc() >= LEAST\n"
    pytester.makepyfile(audit_toy="LEAST = 0.6\n" + source)
    planned = pytester.runpytest_subprocess("-n2", "--audit-plan")
    assert planned.ret == 0
    assert sum(line.startswith("mi-audit plan") for line in planned.stdout.lines) == 1
    pytester.makepyfile(audit_toy="import os\nLEAST = 0.6 if os.environ['PYTEST_XDIST_WORKER'] == 'gw0' else 0.7\n" + source)
    done = workers(pytester, tiny_folder, "-n2")
    assert done.result.ret == 12
    done.result.stdout.fnmatch_lines(["*the workers made different plans*"])
    assert not done.folder.exists()
