"""The recipe that ships gives what it says on the default model."""

import json

import pytest

from mi_audit.config import DEFAULT_MODEL
from mi_audit.evidence import store
from mi_audit.shipped import audits_dir

pytestmark = pytest.mark.real_model


def test_sql_latents(tmp_path):
    from mi_audit.cli.pytesting import run_pytest

    folder, committed = audits_dir() / "sql", json.loads((audits_dir() / "sql" / "expected.json").read_text())
    assert committed["model"] == DEFAULT_MODEL
    run_pytest([str(folder / "audit_sql.py"), f"--audit-model={DEFAULT_MODEL}", f"--audit-out={tmp_path / 'evidence'}", "--audit-format=none"], root=folder)
    run = store.read(tmp_path / "evidence").run
    assert {audit.function: str(audit.verdict) for audit in run.audits} == committed["verdicts"]
    (attribution,) = [reading.attribution for reading in run.readings if reading.attribution is not None]
    assert all(abs(each.residual) <= 0.01 * abs(each.value - each.baseline) for each in attribution.prompts), "attributions add up"
