"""What pytest, statistics, evidence and report add to the bare engine: `python -m tests.benchmarks.overhead`.

An audit of one probe with a few claims runs under pytest, as a user runs it, and leaves evidence and a report. The bare engine reads the same prompts at the
probe's site and does nothing with them (`bare.py`). Both are whole processes: starting Python, importing torch, reading the suites and loading the same model
belong to both sides, so what is left is ours: planning, the probe and its baselines' site, intervals and controls, judging, evidence, report. Both start with
an empty cache, in turn, and nothing else is loaded into pytest but the plugin.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic

from mi_audit.evidence import store
from mi_audit.model.cache import ENVIRONMENT
from mi_audit.model.progress import progress_steps
from mi_audit.model.sources import locate
from mi_audit.reporting.html import render
from mi_audit.suites.prompt import Prompt
from tests.benchmarks.bare import LABELLED, QUIET
from tests.benchmarks.options import Options, options, parser
from tests.benchmarks.prompts import choose
from tests.benchmarks.table import Ratio, alternate, conclude, show

MOST = 0.05
QUIET_SHARE = 5
ENDINGS = {"yes": "Yes!", "no": "No."}
DECIDED = (0, 1, 10)
"""Exit codes of a run whose audits were decided."""

AUDIT = f"""
import mi_audit as mi

labelled = mi.suite("{LABELLED}", positive="yes", fractions=(0.6, 0.0, 0.4))
quiet = mi.suite("{QUIET}")
probe = mi.probe("ending", method="difference_of_means", at=mi.at("resid_post", depth=0.5), fit=labelled["train"],
                 threshold=mi.false_positive_rate(0.2, on=quiet))

@mi.audit(about="instrument")
def audit_reads(model):
    reading = model.read(probe, labelled["test"])
    assert reading.auroc() >= 0.8
    assert reading.recall() >= 0.5
    assert reading.rate() <= 0.9
"""

MARKS = """
import json
import time
from pathlib import Path

import pytest

marks = {}

@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    marks["collected"] = time.monotonic()

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish():
    marks["judged"] = time.monotonic()
    yield
    marks["recorded"] = time.monotonic()
    Path(__file__).with_name("marks.json").write_text(json.dumps(marks))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    given = options(parser(__doc__, prompts=2000), arguments)
    with tempfile.TemporaryDirectory() as folder, progress_steps(shown=False) as steps:
        model = locate(given.model, steps).folder
        project = Path(folder)
        _write_project(project, choose(given))
        spent: dict[str, list[dict[str, float]]] = {"bare": [], "audit": []}
        run = {name: partial(_run, command, project, spent[name]) for name, command in _commands(given, model, project).items()}
        timed = alternate(run, given.repeats)
        began = monotonic()
        render(project / "evidence")
        rendering = monotonic() - began
    parts = {name: {part: median(each[part] for each in runs) for part in runs[0]} for name, runs in spent.items()}
    rows = [[part, *(f"{parts[name][part]:.2f}" if part in parts[name] else "" for name in spent)] for part in {**parts["audit"], **parts["bare"]}]
    rows.append(["the report alone, drawn again", "", f"{rendering:.2f}"])
    rows.append(["whole process", *(f"{timed[name].median:.2f}" for name in spent)])
    show(f"{given.prompts} prompts, medians in seconds", ["part", *spent], rows)
    overhead = timed["audit"].median / timed["bare"].median - 1
    facts = {"model": given.model, "dtype": given.dtype, "device": given.device, "prompts": given.prompts, "seconds": parts}
    return conclude("overhead", facts, [Ratio("audit ÷ bare engine − 1", overhead, at_most=None if given.quick else MOST)])


def _write_project(project: Path, prompts: Sequence[Prompt]) -> None:
    """Four in five prompts end in a word that is their label; the others calibrate."""
    labelled, quiet = [], []
    for number, prompt in enumerate(prompts):
        if number % QUIET_SHARE == 0:
            quiet.append({"id": prompt.id, "text": _body(prompt)})
        else:
            label = "yes" if number % 2 else "no"
            labelled.append({"id": prompt.id, "text": f"{_body(prompt)} {ENDINGS[label]}", "label": label})
    for name, rows in ((LABELLED, labelled), (QUIET, quiet)):
        (project / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (project / "audit_ending.py").write_text(AUDIT, encoding="utf-8")
    (project / "conftest.py").write_text(MARKS, encoding="utf-8")


def _body(prompt: Prompt) -> str:
    return prompt.text or "\n".join(message.content for message in prompt.messages or ())


def _commands(given: Options, model: Path, project: Path) -> dict[str, list[str]]:
    bare = [sys.executable, "-m", "tests.benchmarks.bare", str(project), str(model), given.device, given.dtype]
    audit = [sys.executable, "-m", "pytest", "-p", "mi_audit.pytest_plugin", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={project}", str(project)]
    settings = [f"--audit-model={model}", f"--audit-device={given.device}", f"--audit-dtype={given.dtype}", f"--audit-out={project / 'evidence'}"]
    return {"bare": bare, "audit": [*audit, *settings]}


def _run(command: Sequence[str], project: Path, spent: list[dict[str, float]]) -> None:
    """Run one process to its end and note where its time went."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, ENVIRONMENT: cache, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        began = monotonic()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        ended = monotonic()
    if done.returncode not in DECIDED:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    marks = json.loads((project / "marks.json").read_text(encoding="utf-8"))
    (project / "marks.json").unlink()
    if "judged" in marks:
        seconds = store.read(project / "evidence").volatile.seconds
        inside = {part: seconds[part] for part in ("load model", "forward passes")} | seconds
        inside["judging besides"] = marks["judged"] - marks["collected"] - sum(inside.values())
        inside["evidence and report"] = marks["recorded"] - marks["judged"]
        last = marks["recorded"]
    else:
        inside = {"load model": marks["loaded"] - marks["collected"], "forward passes": marks["read"] - marks["loaded"]}
        last = marks["read"]
    spent.append({"start, imports, suites": marks["collected"] - began, **inside, "exit": ended - last})


if __name__ == "__main__":
    sys.exit(main())
