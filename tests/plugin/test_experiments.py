"""Experiments through pytest: planned, made, judged, in the evidence, drawn in the report; and what is left of one that was not finished."""

import re
from pathlib import Path

import numpy as np
import pytest

import mi_audit.causal.making  # noqa: F401 — runs in this process would else import it anew each time, beside the plugins that are kept
from mi_audit.evidence.experiments import AS_IT_IS, condition
from mi_audit.evidence.store import Bundle
from mi_audit.reporting.html import render
from mi_audit.stats.dose import Dose
from tests.organisms.causes import train
from tests.plugin.runs import Run, run

CAUSE = """
import mi_audit as mi
from tests.organisms.causes import LAYER, NEGATIVE, POSITIVE, suites_for

suites = suites_for(0)
cause, benign = suites.cause, suites.benign.head(40)
steered = cause["test"].one_per_group()
probe = mi.probe("cause", method="difference_of_means", at=mi.at("resid_post", layer=LAYER), fit=cause["train"])
answer = mi.effects.logit_difference(POSITIVE, NEGATIVE)
"""
CLAIMS = (
    CAUSE
    + """
@mi.audit(about="instrument")
def audit_drives(model):
    sweep = model.steer(probe, on=steered, strengths=(-2, -1, 1, 2), effect=answer)
    assert sweep.slope() > sweep.null.slope()
    assert sweep.slope() >= 4
    assert sweep.smallest_step() > 0
    assert sweep.sign_reversal() > 0
    assert sweep.at(-1).change() <= -3
    assert sweep.at(1).side_effects(on=benign).kl() <= 50

@mi.audit(about="instrument")
def audit_is_no_handle_of_length(model):
    assert model.ablate(probe, on=steered, effect=answer, everywhere=False).change() <= -1
"""
)
LEFT = (
    CAUSE
    + """
calls = 0

def gap(logits, prompt):
    global calls
    calls += 1
    if calls > 100:
        raise KeyboardInterrupt
    return logits[:, 5] - logits[:, 6]

@mi.audit(about="instrument")
def audit_a_drives(model):
    assert model.steer(probe, on=steered, strengths=(-1, 1), effect=answer).slope() >= 4

@mi.audit(about="instrument")
def audit_b_is_broken_off(model):
    assert model.steer(probe, on=steered, strengths=(-1, 1), effect=mi.effects.function(gap)).slope() >= 0

@mi.audit(about="instrument")
def audit_c_never_runs(model):
    assert model.steer(probe, on=steered, strengths=(-2, 2), effect=answer).slope() >= 4
"""
)
OVERFLOWS = (
    CAUSE
    + """
@mi.audit(about="instrument")
def audit_overflows(model):
    assert model.steer(probe, on=steered, strengths=(-1, 1, 1e38), effect=answer).slope() >= 1
"""
)


@pytest.fixture(scope="module")
def organism(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("organisms") / "causes"
    train(folder)
    return folder


def test_an_experiment_is_judged_and_every_claim_follows_from_its_samples(pytester: pytest.Pytester, organism: Path) -> None:
    pytester.makepyfile(audit_cause=CLAIMS)
    done = run(pytester, organism, report="html")
    done.result.stdout.fnmatch_lines(["*experiments*", "*strengths -2, -1, 1, 2 (unit vector), generated tokens*"])
    assert done.verdicts == {"audit_drives": "PASS", "audit_is_no_handle_of_length": "INCONCLUSIVE"}, "an ablation moves half of the answers up"
    evidence, bundle = done.bundle.run, done.bundle
    experiment = next(each for each in evidence.experiments if each.action == "add")
    strengths = (-2.0, -1.0, 1.0, 2.0)
    own, drawn = (_numbers(bundle, experiment.id, arm) for arm in ("detector", "null: shuffled labels"))
    prompts = sorted({prompt for _, _, prompt in own})
    dose = Dose(
        np.array([[own[condition(strength), 0, prompt] for prompt in prompts] for strength in strengths]),
        np.array([own[AS_IT_IS, 0, prompt] for prompt in prompts]),
        strengths,
        prompts,  # of each group one
        origin=True,
    )
    null = np.array([[[drawn[condition(strength), draw, prompt] for prompt in prompts] for strength in strengths] for draw in range(39)])
    for claim in evidence.claims:
        if claim.reading != experiment.id or claim.on is not None:
            continue
        again = dose.excess(claim.quantity, null, claim.strength) if claim.over_null else dose.estimate(claim.quantity, claim.strength)
        assert (again.value, again.low, again.high) == pytest.approx((claim.value, claim.low, claim.high), rel=1e-9)
        rank = next(each for each in claim.nulls if each.name == "shuffled labels")
        assert (rank.draws, rank.k) == (39, 0)
        assert rank.downward is (claim.op == "<=")
    assert render(done.folder) == (done.folder / "report.html").read_text("utf-8")


def _numbers(bundle: Bundle, measurement: str, arm: str) -> dict[tuple[str, int, str], float]:
    table = bundle.samples(arm=arm, measurement=measurement)
    columns = [table[name].to_pylist() for name in ("condition", "draw", "prompt", "value")]
    return {(where, draw, prompt): value for where, draw, prompt, value in zip(*columns, strict=True)}


@pytest.mark.parametrize(("calls", "prompts"), [(60, 30), (100, 40)], ids=["along the detector", "along its nulls"])
def test_a_run_that_was_interrupted_leaves_what_was_measured(
    pytester: pytest.Pytester, organism: Path, monkeypatch: pytest.MonkeyPatch, calls: int, prompts: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    pytester.makepyfile(audit_cause=LEFT.replace("calls > 100", f"calls > {calls}"))
    folder = pytester.path / "evidence"
    result = pytester.runpytest_subprocess(f"--audit-model={organism}", f"--audit-out={folder}", "--audit-format=none", "--audit-no-cache")
    done = Run(result, folder)
    assert done.result.ret == pytest.ExitCode.INTERRUPTED
    assert done.verdicts == {"audit_a_drives": "PASS", "audit_b_is_broken_off": "ERROR", "audit_c_never_runs": "ERROR"}
    evidence = done.bundle.run
    assert evidence.partial[-1] == "it was interrupted"
    whole, broken = sorted(evidence.experiments, key=lambda each: each.error or "")
    assert (whole.error, whole.n) == (None, 40) and (broken.error, broken.n) == ("interrupted", prompts)
    assert all(point.change is not None and not point.nulls for point in broken.points), "the dose–response was measured, its nulls were not"


def test_a_strength_that_overflows_is_named_and_the_others_are_in_the_evidence(pytester: pytest.Pytester, organism: Path) -> None:
    pytester.makepyfile(audit_cause=OVERFLOWS)
    done = run(pytester, organism)
    assert done.verdicts == {"audit_overflows": "ERROR"}
    assert re.search(r"at the strength 1e\+38, resid_post at layer 1: .*not finite.*take smaller strengths", done.error("audit_overflows"))
    (experiment,) = done.bundle.run.experiments
    assert [(point.strength, point.failed is None) for point in experiment.points] == [(-1.0, True), (1.0, True), (1e38, False)]
