"""The frame passes a feature that is known to be there, and does not pass one that can't be."""

import json

import pytest

from tests.organisms.memory import texts, train
from tests.plugin.runs import run

AUDITS = """
import json
import pathlib
import mi_audit as mi

made = json.loads((pathlib.Path(__file__).parent / "texts.json").read_text())

def suite_of(what, positive):
    rows = [{"id": f"{i}", "text": t["text"], "prefix": t["prefix"], "label": t[what]} for i, t in enumerate(made)]
    return mi.suite(rows, positive=positive, name=what)

def probe_of(suite, method):
    return mi.probe(f"{suite.name}_{method}", method=method, at=mi.at("resid_post", depth=1.0), tokens=mi.last_of("prefix"), fit=suite["train"])

remembered, coin = suite_of("remembered", "high"), suite_of("coin", "heads")

@mi.audit(about="instrument")
def audit_present(model):
    for method in ("difference_of_means", "mass_mean", "logistic"):
        assert model.read(probe_of(remembered, method), remembered["test"]).auroc() >= 0.9

@mi.audit(about="instrument")
def audit_absent_difference_of_means(model):
    assert model.read(probe_of(coin, "difference_of_means"), coin["test"]).auroc() >= 0.7

@mi.audit(about="instrument")
def audit_absent_logistic(model):
    assert model.read(probe_of(coin, "logistic"), coin["test"]).auroc() >= 0.7
"""


@pytest.fixture(scope="module")
def organism(tmp_path_factory):
    folder, accuracy = train(tmp_path_factory.mktemp("organism") / "memory")
    assert accuracy >= 0.99, "the organism must have learned what it is planted with"
    return folder


def test_present_passes_and_absent_does_not(pytester, organism):
    (pytester.path / "texts.json").write_text(json.dumps([vars(text) for text in texts(600, seed=12345)]))
    pytester.makepyfile(audit_planted=AUDITS)
    done = run(pytester, organism)
    assert done.verdicts["audit_present"] == "PASS"
    assert done.verdicts["audit_absent_difference_of_means"] == "FAIL"
    assert done.verdicts["audit_absent_logistic"] == "FAIL"
    assert done.result.ret == 1
