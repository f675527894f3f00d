"""A second run on a model and suites that were seen: no forward pass, no weights, not even torch; and the same evidence."""

import os
from pathlib import Path

import pytest

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
import sys

def pytest_unconfigure():
    print("torch was imported:", "torch" in sys.modules)
"""


def run(pytester: pytest.Pytester, model: Path, name: str, *, floor: float, arguments: tuple[str, ...] = ()) -> Run:
    pytester.makepyfile(audit_toy=TOY + AUDITS.format(floor=floor))
    result = pytester.runpytest_subprocess("-s", f"--audit-model={model}", f"--audit-out={pytester.path / name}", "--audit-format=html", *arguments)
    return Run(result, pytester.path / name)


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="the facts of a model are kept where the system tells of its processor")
@pytest.mark.parametrize("arguments", [(), ("-n2",)])
def test_a_second_run_needs_no_torch(pytester, tiny_folder, monkeypatch, arguments):
    monkeypatch.setenv("MI_AUDIT_CACHE", str(pytester.path / "cache"))
    pytester.makeconftest(TELLS)
    cold = run(pytester, tiny_folder, "cold", floor=0.8)
    assert cold.bundle.volatile.cache["weights loaded"] == 1
    cold.result.stdout.fnmatch_lines(["torch was imported: True"])
    same, other = (run(pytester, tiny_folder, f"{floor}", floor=floor, arguments=arguments) for floor in (0.8, 0.999999))
    for warm in (same, other):
        cache = warm.bundle.volatile.cache
        assert (cache["weights loaded"], cache["prompts passed"]) == (0, 0) and cache["prompts found"] > 0
        warm.result.stdout.fnmatch_lines(["torch was imported: False"])
        assert "were not loaded in this run" in (warm.folder / "report.html").read_text()
    assert "were not loaded in this run" not in (cold.folder / "report.html").read_text()
    assert same.bundle.run == cold.bundle.run
    assert (same.folder / "tokens.parquet").read_bytes() == (cold.folder / "tokens.parquet").read_bytes()
    assert (cold.verdicts["audit_reads"], other.verdicts["audit_reads"]) == ("PASS", "INCONCLUSIVE")
