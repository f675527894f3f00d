"""One audit run in a process of its own, and what it leaves."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from mi_audit.evidence import store
from mi_audit.model.cache import ENVIRONMENT
from tests.agreement.tiny_models import save_tiny
from tests.plugin.toy import TOY

AUDITS = """
@mi.audit(about="instrument")
def audit_reads(model):
    reading = model.read(probe, toy["test"])
    assert reading.auroc() >= 0.8
    assert reading.recall() >= 0.5

@mi.audit()
def audit_quiet(model):
    assert model.read(probe, quiet["test"]).rate() <= 0.3
"""
DECIDED = (0, 1, 10)
"""Exit codes of a run whose audits were decided."""


@dataclass(frozen=True)
class Outcome:
    """What two runs must agree on: the exit code and every file of the bundle, of `evidence.json` the evidence section, less the report."""

    exit_code: int
    files: dict[str, bytes]

    def differences(self, other: "Outcome") -> list[str]:
        """What the other does not have, or has otherwise."""
        code = [f"exit code {other.exit_code}"] if self.exit_code != other.exit_code else []
        return code + sorted(name for name in {*self.files, *other.files} if self.files.get(name) != other.files.get(name))


@dataclass(frozen=True)
class Place:
    """A project's audit file and its model, and the cache and results that one command uses; `results` holds nothing but what the command leaves."""

    project: Path
    cache: Path
    results: Path

    @classmethod
    def make(cls, project: Path, groups: int) -> None:
        """Write the audit file, with two labelled prompts in each of so many groups and side, and a tiny model."""
        project.mkdir()
        toy = TOY.replace("range(80)", f"range({groups})")
        (project / "audit_toy.py").write_text(toy + AUDITS, encoding="utf-8")
        save_tiny(project / "model")

    @classmethod
    def fresh(cls, project: Path, folder: Path) -> "Place":
        """An empty cache and an empty results folder in a new folder."""
        place = cls(project, folder / "cache", folder / "results")
        place.cache.mkdir(parents=True)
        place.results.mkdir()
        return place

    @property
    def bundle(self) -> Path:
        return self.results / "evidence"

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command, in a process group of its own; its output goes to a file beside the results."""
        arguments = ["-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={self.project}", f"{self.project}"]
        settings = [f"--audit-model={self.project / 'model'}", f"--audit-out={self.bundle}", "--audit-device=cpu"]
        environment = {**os.environ, ENVIRONMENT: str(self.cache), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "pytest", "-p", "mi_audit.pytest_plugin", *arguments, *settings]
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def finish(self) -> Outcome:
        """Run the command to its end.

        Raises:
            RuntimeError: its audits were not decided; the message holds its output.
        """
        code = self.start().wait()
        if code not in DECIDED:
            raise RuntimeError(f"the run ended with {code}:\n{self._log.read_text(encoding='utf-8', errors='replace')}")
        return Outcome(code, {str(path.relative_to(self.bundle)): _lasting(path) for path in sorted(self.bundle.rglob("*")) if path.is_file()})

    def kill_after(self, seconds: float) -> bool:
        """Start the command and kill its process group after so many seconds; False if it ended before."""
        process = self.start()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        return False

    @property
    def left(self) -> list[str]:
        """What lies in the results folder besides the bundle."""
        return sorted(path.name for path in self.results.iterdir() if path != self.bundle)

    @property
    def _log(self) -> Path:
        return self.results.parent / "output.txt"


def timed(place: Place) -> tuple[Outcome, float]:
    """An undisturbed run and its seconds."""
    began = monotonic()
    outcome = place.finish()
    return outcome, monotonic() - began


def _lasting(path: Path) -> bytes:
    """The part of a file that is equal for equal runs: canonical JSON sorts its keys, so the volatile section is the end of `evidence.json`."""
    if path.name == store.REPORT:
        return b""
    content = path.read_bytes()
    return content.rpartition(b',"volatile":')[0] if path.name == store.EVIDENCE else content
