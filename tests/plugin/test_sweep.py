"""A sweep through pytest: planned, run, in the evidence and drawn in the report."""

import re

import pytest

from mi_audit.errors import EvidenceError
from mi_audit.evidence import consistency
from tests.agreement.tiny_models import LAYERS
from tests.plugin.runs import run
from tests.plugin.toy import TOY

SWEPT = (
    TOY
    + """
layers = mi.sweep(probe, over="all")

@mi.audit(about="instrument")
def audit_reads(model):
    assert model.read(layers, toy["test"]).auroc() >= 0.8

@mi.audit(about="instrument")
def audit_fires(model):
    assert model.read(layers, toy["test"]).recall() >= 0.5
"""
)


def test_the_curve_is_in_the_evidence_and_drawn_in_the_report(pytester, tiny_folder):
    pytester.makepyfile(audit_swept=SWEPT)
    done = run(pytester, tiny_folder, report="html")
    assert done.result.ret == 0
    done.result.stdout.fnmatch_lines(["*resid_post swept over all layers and chosen on a third of the fitted groups*"])
    evidence = done.bundle.run
    (detector,) = evidence.detectors
    assert (detector.kind, detector.method, detector.fit_suite) == ("sweep", "difference_of_means", "toy[train]")
    assert [point.layer for point in detector.curve] == list(range(LAYERS))
    best = max(point.auroc for point in detector.curve)
    assert (
        [point.layer for point in detector.curve if point.picked] == [next(point.layer for point in detector.curve if point.auroc == best)] == [detector.layer]
    )
    validated = next(suite for suite in evidence.suites if suite.name == detector.validation_suite)
    assert {(point.n, point.groups) for point in detector.curve} == {(validated.n, validated.groups)}
    assert validated.groups == round(detector.fit_groups / 3)

    report = (done.folder / "report.html").read_text("utf-8")
    assert report.count('<figure class="sweep"') == 1, "drawn once, in the first card"
    assert report.count('href="#sweep-1"') == 1, "and led to from the second"
    figure = re.search(r'<figure class="sweep" id="sweep-1">.*?</figure>', report, re.DOTALL)[0]
    assert figure.count('class="point"') == LAYERS - 1
    assert figure.count('class="picked"') == 1
    assert re.findall(r'<th scope="row" class="num">(\d+)</th>', figure) == [str(layer) for layer in range(LAYERS)]
    assert "<title" in figure and "<desc" in figure
    assert "The layer was chosen on validation groups" in figure
    assert "the tested groups took no part" in figure


def test_evidence_in_which_another_layer_was_picked_than_the_best_is_refused(pytester, tiny_folder):
    pytester.makepyfile(audit_swept=SWEPT)
    evidence = run(pytester, tiny_folder).bundle.run
    (detector,) = evidence.detectors
    moved = (detector.layer + 1) % LAYERS
    curve = tuple(point.model_copy(update={"picked": point.layer == moved}) for point in detector.curve)
    tampered = [
        ({"layer": moved}, "reads at layer"),
        ({"curve": curve}, "picked"),
        ({"curve": curve, "layer": moved}, "its curve is best at"),
        ({"curve": ()}, "a sweep has one"),
        ({"kind": "probe"}, "is a probe with a curve"),
        ({"validation_suite": None}, "and a validation suite"),
        ({"curve": detector.curve[::-1]}, "does not ascend"),
        ({"curve": tuple(point.model_copy(update={"low": 0.999, "auroc": 0.5}) for point in detector.curve)}, "does not lie in its interval"),
    ]
    consistency.check(evidence)
    for change, message in tampered:
        with pytest.raises(EvidenceError, match=message):
            consistency.check(evidence.model_copy(update={"detectors": (detector.model_copy(update=change),)}))


def test_a_probe_and_its_sweep_in_one_run_must_be_told_apart(pytester, tiny_folder):
    pytester.makepyfile(audit_swept=SWEPT + '    assert model.read(probe, toy["test"]).auroc() >= 0.8\n')
    done = run(pytester, tiny_folder)
    assert done.result.ret == 12
    assert "another detector is called 'toy' too" in done.error("audit_fires")
