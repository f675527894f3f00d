"""Run pytest on an audit file and read what it left."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from mi_audit.evidence import store


@dataclass(frozen=True)
class Run:
    """A finished run: pytest's result and the bundle."""

    result: pytest.RunResult
    folder: Path

    @property
    def bundle(self) -> store.Bundle:
        return store.read(self.folder)

    @property
    def verdicts(self) -> dict[str, str]:
        return {audit.function: str(audit.verdict) for audit in self.bundle.run.audits}

    def error(self, function: str) -> str:
        return next(audit.error or "" for audit in self.bundle.run.audits if audit.function == function)


def run(pytester: pytest.Pytester, model: Path, *arguments: str, report: str = "none", out: Path | None = None) -> Run:
    folder = out or pytester.path / "evidence"
    result = pytester.runpytest_inprocess(f"--audit-model={model}", f"--audit-out={folder}", f"--audit-format={report}", *arguments)
    return Run(result, folder)
