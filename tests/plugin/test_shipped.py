"""The shipped audits on the default model, once: the committed verdicts, evidence that gives every claim again, a report that renders again.

A run and all that is held against it is one test, so that no two processes make the same run; audits with experiments, which take longest, have their own.
"""

import json
import re

import numpy as np
import pytest
from scipy.stats import rankdata

from mi_audit.cli.demo import PACKS
from mi_audit.config import DEFAULT_MODEL
from mi_audit.evidence import store
from mi_audit.evidence.experiments import AS_IT_IS, condition
from mi_audit.reporting.html import render
from mi_audit.shipped import audits_dir, shipped_audits
from mi_audit.stats.auroc import auroc
from mi_audit.stats.rates import rate

pytestmark = pytest.mark.real_model


PATHS = [path for path in shipped_audits() if path.relative_to(audits_dir()).parts[0] in PACKS]
EXPERIMENTS = [path for path in PATHS if "model.steer(" in path.read_text(encoding="utf-8")]


def test_readings(tmp_path):
    bundle = bundle_of([path for path in PATHS if path not in EXPERIMENTS], tmp_path / "evidence")
    claims_follow_from_the_samples(bundle)
    assert render(bundle.directory) == (bundle.directory / store.REPORT).read_text(encoding="utf-8")


def test_experiments(tmp_path):
    bundle = bundle_of(EXPERIMENTS, tmp_path / "evidence")
    claims_follow_from_the_samples(bundle)
    claims_of_experiments_follow_from_the_samples(bundle)
    assert render(bundle.directory) == (bundle.directory / store.REPORT).read_text(encoding="utf-8")


def test_every_shipped_audit_has_a_committed_verdict():
    assert committed().keys() == audits_in(PATHS)
    assert EXPERIMENTS and set(EXPERIMENTS) < set(PATHS)


def bundle_of(paths, folder):
    """Run audits, which give their committed verdicts."""
    from mi_audit.cli.pytesting import run_pytest

    code = run_pytest([*map(str, paths), f"--audit-model={DEFAULT_MODEL}", f"--audit-out={folder}"], root=audits_dir())
    assert code == 1
    bundle = store.read(folder)
    expected = {name: verdict for name, verdict in committed().items() if name in audits_in(paths)}
    assert {audit.function: str(audit.verdict) for audit in bundle.run.audits} == expected
    return bundle


def committed():
    verdicts = {}
    for pack in PACKS:
        told = json.loads((audits_dir() / pack / "expected.json").read_text(encoding="utf-8"))
        assert told["model"] == DEFAULT_MODEL
        verdicts |= told["verdicts"]
    return verdicts


def audits_in(paths):
    return {name for path in paths for name in re.findall(r"^def (audit_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)}


def claims_follow_from_the_samples(bundle):
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


def claims_of_experiments_follow_from_the_samples(bundle):
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
