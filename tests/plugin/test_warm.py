"""A second run on a model and suites that were seen: no forward pass, no weights, not even torch; and the same evidence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mi_audit.evidence import store
from tests.plugin.runs import Run
from tests.plugin.toy import TOY

AUDITS = """
@mi.audit(about="instrument")
def audit_reads(model):
    assert model.read(probe, toy["test"]).auroc() >= {floor}

@mi.audit()
def audit_quiet(model):
    assert model.read(probe, toy["test"]).rate() <= 0.9
"""
TELLS = """
import os
import sys
from pathlib import Path

def pytest_unconfigure(config):
    Path(config.rootpath, f"process-{os.getpid()}").write_text(str("torch" in sys.modules))
"""


FLOOR = 0.8


def settings(model: Path, out: Path) -> list[str]:
    return [f"--audit-model={model}", "--audit-device=cpu", f"--audit-out={out}", "--audit-format=html"]


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The folder of a first run, with what it left: `cache`, `evidence`, and a file that tells whether it imported torch."""
    folder = tmp_path_factory.mktemp("cold")
    (folder / "conftest.py").write_text(TELLS)
    (folder / "audit_toy.py").write_text(TOY + AUDITS.format(floor=FLOOR))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={folder}", *settings(tiny_folder, folder / "evidence")]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "MI_AUDIT_CACHE": str(folder / "cache")}, capture_output=True, text=True, check=False)
    assert done.returncode == 10 and "Warning" not in done.stderr, done.stdout + done.stderr
    return folder


@pytest.fixture
def seen(cold: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> store.Bundle:
    """What the first run left: its cache, in which the test may do as it likes, and its bundle."""
    shutil.copytree(cold / "cache", pytester.path / "cache")
    monkeypatch.setenv("MI_AUDIT_CACHE", str(pytester.path / "cache"))
    return store.read(cold / "evidence")


def run(pytester: pytest.Pytester, model: Path, name: str, *, floor: float = FLOOR, arguments: tuple[str, ...] = ()) -> Run:
    (pytester.path / "audit_toy.py").write_text(TOY + AUDITS.format(floor=floor))
    result = pytester.runpytest_subprocess(*settings(model, pytester.path / name), *arguments)
    assert "Warning" not in result.stderr.str()
    return Run(result, pytester.path / name)


def imported_torch(folder: Path) -> set[str]:
    """What the processes that ran there say."""
    return {path.read_text() for path in folder.glob("process-*")}


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="the facts of a model are kept where the system tells of its processor")
@pytest.mark.parametrize("arguments", [(), ("-n2",)])
def test_a_second_run_needs_no_torch(pytester, tiny_folder, cold, seen, arguments):
    assert seen.volatile.cache["weights loaded"] == 1
    assert imported_torch(cold) == {"True"}
    pytester.makeconftest(TELLS)
    same, other = (run(pytester, tiny_folder, f"{floor}", floor=floor, arguments=arguments) for floor in (FLOOR, 0.999999))
    for warm in (same, other):
        cache = warm.bundle.volatile.cache
        assert (cache["weights loaded"], cache["prompts passed"]) == (0, 0) and cache["prompts found"] > 0
        assert "were not loaded in this run" in (warm.folder / "report.html").read_text()
    assert "were not loaded in this run" not in (cold / "evidence" / "report.html").read_text()
    assert imported_torch(pytester.path) == {"False"}
    assert same.bundle.run == seen.run
    assert (same.folder / "tokens.parquet").read_bytes() == (cold / "evidence" / "tokens.parquet").read_bytes()
    assert (same.verdicts["audit_reads"], other.verdicts["audit_reads"]) == ("PASS", "INCONCLUSIVE")


FORGED = """
import mi_audit.model.facts as facts

facts.Facts.agrees = lambda self, other: False
"""
"""What an earlier run found does not agree with what loading gives, whatever that is."""


def prompts(pytester: pytest.Pytester) -> list[Path]:
    """The entries of encoded prompts, those of the token scores first: they are the smallest."""
    return sorted(pytester.path.glob("cache/activations/*/prompts-*"), key=lambda entry: sum(path.stat().st_size for path in entry.iterdir()))


def a_suite(pytester: pytest.Pytester) -> None:
    shutil.rmtree(prompts(pytester)[-1])


def the_strips(pytester: pytest.Pytester) -> None:
    shutil.rmtree(prompts(pytester)[0])


def all_are_errors(done: Run) -> bool:
    return done.result.ret == 12 and set(done.verdicts.values()) == {"ERROR"} and "is not what an earlier run found" in done.error("audit_reads")


def no_evidence(done: Run) -> bool:
    done.result.stdout.fnmatch_lines(["EVIDENCE NOT WRITTEN: *is not what an earlier run found*"])
    return done.result.ret == 11 and not done.folder.exists()


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="the facts of a model are kept where the system tells of its processor")
@pytest.mark.parametrize(("lacking", "check"), [(a_suite, all_are_errors), (the_strips, no_evidence)])
@pytest.mark.usefixtures("seen")
def test_facts_that_prove_wrong_give_no_verdict(pytester, tiny_folder, lacking, check):
    """Whether a reading needs the weights or, once all is judged, only the token scores do."""
    pytester.makeconftest(FORGED)
    lacking(pytester)
    wrong = run(pytester, tiny_folder, "wrong")
    assert check(wrong)
    right = run(pytester, tiny_folder, "right")
    assert right.bundle.volatile.cache["weights loaded"] == 1


UNPLANNED = """
other = mi.suite([dict(row, text="new: " + row["text"]) for row in rows], positive="yes", name="other")

@mi.audit()
def audit_zz_unplanned(model, tmp_path):
    assert model.read(probe, other).auroc() >= 0.5
"""
"""What this audit claims is known in the run only, so that the weights are asked for once all others are judged."""


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="the facts of a model are kept where the system tells of its processor")
@pytest.mark.usefixtures("seen")
def test_facts_that_prove_wrong_late_take_earlier_verdicts_back(pytester, tiny_folder):
    pytester.makeconftest(FORGED)
    pytester.makepyfile(audit_zz=TOY + UNPLANNED)
    wrong = run(pytester, tiny_folder, "wrong")
    wrong.result.stdout.fnmatch_lines(["* 1 passed, 1 error, 1 inconclusive in *"])
    assert no_evidence(wrong)
