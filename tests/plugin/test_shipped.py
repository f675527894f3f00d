"""The shipped audits on the default model, once: the committed verdicts, evidence that gives every claim again, a report that renders again."""

import json

import numpy as np
import pytest
from scipy.stats import rankdata

from mi_audit.cli.demo import PACKS
from mi_audit.config import DEFAULT_MODEL
from mi_audit.evidence import store
from mi_audit.evidence.experiments import AS_IT_IS, condition
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
    experiments = {experiment.id for experiment in bundle.run.experiments}
    for claim in bundle.run.claims:
        if claim.reading in experiments:
            continue
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


def test_every_claim_of_an_experiment_follows_from_the_samples(bundle):
    experiments = {experiment.id: experiment for experiment in bundle.run.experiments}
    claims = [claim for claim in bundle.run.claims if claim.reading in experiments]
    assert {claim.quantity for claim in claims} == {"slope", "smallest_step", "sign_reversal", "change", "kl", "capability_change"}
    for claim in claims:
        experiment = experiments[claim.reading]
        strengths = [point.strength for point in experiment.points]
        if claim.on is not None:
            (curve,) = (each for each in experiment.side_effects if (each.quantity, each.suite) == (claim.quantity, claim.on))
            values = _by_condition(bundle, curve.id, "detector")
            assert (values[condition(claim.strength)] - values[AS_IT_IS]).mean() == pytest.approx(claim.value, rel=1e-9)
            continue
        unsteered = _by_condition(bundle, claim.reading, "detector")[AS_IT_IS]
        observed = _statistic(bundle, claim, "detector", strengths, unsteered)[0]
        drawn = {null.name: _statistic(bundle, claim, f"null: {null.name}", strengths, unsteered) for null in claim.nulls}
        assert observed - (drawn["shuffled labels"].mean() if claim.over_null else 0.0) == pytest.approx(claim.value, rel=1e-9)
        way = -1.0 if claim.op in ("<", "<=") else 1.0
        for null in claim.nulls:
            assert ((way * drawn[null.name] >= way * observed - 1e-12).sum() + 1) / (len(drawn[null.name]) + 1) == pytest.approx(null.p)


def _by_condition(bundle, measurement, arm):
    """[draws, prompts] at each strength, and as it is."""
    table = bundle.samples(arm=arm, measurement=measurement)
    conditions, values, prompts = (np.array(table[name].to_pylist()) for name in ("condition", "value", "prompt"))
    return {each: values[conditions == each].reshape(-1, len(set(prompts))) for each in set(conditions)}


def _statistic(bundle, claim, arm, strengths, unsteered):
    """The claim's quantity of each draw of an arm."""
    found = _by_condition(bundle, claim.reading, arm)
    shifts = {strength: (found[condition(strength)] - unsteered).mean(axis=1) for strength in strengths}
    if claim.quantity == "change":
        return shifts[claim.strength]
    if claim.quantity == "sign_reversal":
        return np.minimum(shifts[strengths[-1]], -shifts[strengths[0]])
    doses = sorted([*strengths, 0.0])
    curve = np.array([shifts.get(dose, np.zeros_like(shifts[strengths[0]])) for dose in doses])
    return np.polyfit(doses, curve, 1)[0] if claim.quantity == "slope" else np.diff(curve, axis=0).min(axis=0)


def test_the_report_is_a_function_of_the_evidence(bundle):
    assert render(bundle.directory) == (bundle.directory / store.REPORT).read_text(encoding="utf-8")
