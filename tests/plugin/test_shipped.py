"""The shipped audits on the default model, once: the committed verdicts, evidence that gives every claim again, a report that renders again."""

import json

import numpy as np
import pytest
from scipy.stats import rankdata

from mi_audit.cli.demo import PACKS
from mi_audit.config import DEFAULT_MODEL
from mi_audit.evidence import store
from mi_audit.reporting.html import render
from mi_audit.shipped import audits_dir
from mi_audit.stats.auroc import auroc
from mi_audit.stats.rates import rate

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from mi_audit.cli.pytesting import run_pytest

    folder = tmp_path_factory.mktemp("shipped") / "evidence"
    code = run_pytest([*(str(audits_dir() / pack) for pack in PACKS), f"--audit-model={DEFAULT_MODEL}", f"--audit-out={folder}"], root=audits_dir())
    assert code == 1
    return store.read(folder)


def test_the_verdicts_are_those_committed(bundle):
    expected = {}
    for pack in PACKS:
        committed = json.loads((audits_dir() / pack / "expected.json").read_text())
        assert committed["model"] == DEFAULT_MODEL
        expected |= committed["verdicts"]
    assert {audit.function: str(audit.verdict) for audit in bundle.run.audits} == expected


def test_every_claim_follows_from_the_samples(bundle):
    for claim in bundle.run.claims:
        table = bundle.samples(arm="detector", measurement=claim.reading)
        values, groups = np.array(table["value"].to_pylist()), np.array(table["group"].to_pylist())
        match claim.quantity:
            case "auroc":
                again = auroc(values, np.array(table["label"].to_pylist()), groups, alpha=claim.alpha)
            case "recall":
                positive = np.array(table["label"].to_pylist())
                again = rate(values[positive] > table["threshold"][0].as_py(), groups[positive], alpha=claim.alpha, quantity="recall")
            case "rate":
                again = rate(values > table["threshold"][0].as_py(), groups, alpha=claim.alpha)
        assert (again.value, again.low, again.high) == pytest.approx((claim.value, claim.low, claim.high), rel=1e-9)
        for null in claim.nulls if claim.quantity == "auroc" else ():
            drawn = bundle.samples(arm=f"null: {null.name}", measurement=claim.reading)
            scores, labels = (np.array(drawn[name].to_pylist()).reshape(null.draws, -1) for name in ("value", "label"))
            sums = (rankdata(scores, axis=1) * labels).sum(axis=1)
            positives = labels.sum(axis=1)
            statistics = (sums - positives * (positives + 1) / 2) / (positives * (labels.shape[1] - positives))
            assert ((statistics >= claim.value - 1e-9).sum() + 1) / (null.draws + 1) == pytest.approx(null.p)


def test_the_report_is_a_function_of_the_evidence(bundle):
    assert render(bundle.directory) == (bundle.directory / store.REPORT).read_text(encoding="utf-8")
