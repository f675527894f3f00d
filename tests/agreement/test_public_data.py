"""Known results on public data, through our own path and through an independent one.

Skipped where the data is absent; set MI_AUDIT_PUBLIC_DATA to its folder.
"""

import os
from pathlib import Path

import numpy as np
import pytest

import mi_audit as mi
from mi_audit.auditor import Auditor
from mi_audit.causal.laboratory import Laboratory
from mi_audit.detectors.bench import Bench
from mi_audit.shipped import audits_dir
from mi_audit.stats.verdict import Verdict

DATA = Path(os.environ.get("MI_AUDIT_PUBLIC_DATA", Path(__file__).parents[3] / "shared" / "data"))

pytestmark = [pytest.mark.real_model, pytest.mark.skipif(not DATA.is_dir(), reason="the public benchmark data is not on this machine")]


@pytest.fixture(scope="module")
def auditor(default_model):
    bench = Bench(default_model, alpha=0.025, seed=0)
    return Auditor(Laboratory(bench, default_model, alpha=0.025, seed=0).estimate, bench.attribute, default_model.identity)


def independent_auroc(model, train: mi.Suite, test: mi.Suite, layer: int) -> float:
    """Difference of means on the last token with transformers and scikit-learn alone, one prompt at a time."""
    import torch
    from sklearn.metrics import roc_auc_score

    def last(suite: mi.Suite) -> np.ndarray:
        rows = []
        with torch.no_grad():
            for prompt in suite:
                ids = model.tokenizer(prompt.text, return_tensors="pt").input_ids
                rows.append(model.hf(ids, output_hidden_states=True).hidden_states[layer + 1][0, -1].numpy())
        return np.stack(rows).astype(np.float64)

    acts, labels = last(train), np.array(train.labels())
    direction = acts[labels].mean(axis=0) - acts[~labels].mean(axis=0)
    return float(roc_auc_score(test.labels(), last(test) @ direction))


def test_truth_of_statements_about_cities(auditor, default_model):
    """Marks & Tegmark's cities, half of the countries for fitting. The same detector inverts on the negated statements, and its claim fails there."""
    columns = {"text": "statement", "group": "country", "label": "label"}
    cities = mi.suite(DATA / "truth/got_cities.csv", columns=columns, fractions=(0.5, 0.0, 0.5), split_seed=1)
    negated = mi.suite(DATA / "truth/got_neg_cities.csv", columns=columns)
    at = mi.at("resid_post", depth=0.6)
    truth = mi.probe("truth", method="difference_of_means", at=at, fit=cities["train"])
    estimate = auditor.read(truth, cities["test"]).auroc()
    assert 0.84 <= estimate.value <= 0.92
    assert estimate.low <= estimate.value <= estimate.high
    layer = at.layer_in(default_model.n_layers)
    assert estimate.value == pytest.approx(independent_auroc(default_model, cities["train"], cities["test"], layer), abs=1e-3)
    inverted = auditor.read(truth, negated).auroc()
    assert 0.14 <= inverted.value <= 0.23
    assert (inverted >= 0.8).verdict is Verdict.FAIL


def test_harmful_requests(auditor):
    """Harmful against harmless instructions as chat requests, last token of the generation prompt, with the baselines that see no internals beside it."""
    harmful, harmless = instructions()
    both = mi.concat(harmful, mi.suite(harmless[:600], name="harmless"), name="requests")
    probe = mi.probe("harmful", method="difference_of_means", at=mi.at("resid_post", depth=0.5), fit=both["train"])
    estimate = auditor.read(probe, both["test"]).auroc()
    assert estimate.value >= 0.95
    assert (estimate >= 0.9).verdict is Verdict.PASS
    assert {baseline.name for baseline in estimate.controls.baselines} >= {"length", "bag of words"}


@pytest.mark.skipif("MI_AUDIT_PUBLIC_DATA" not in os.environ, reason="takes a minute or two: name the data's folder in MI_AUDIT_PUBLIC_DATA")
def test_directions_of_refusal(auditor):
    """Steered at layer 16 with prompts that no part of it has seen. The direction of our own suite, from answers that help to answers that refuse, moves the
    beginnings of refusals; that from harmless to harmful instructions (Arditi et al. 2024, arXiv 2406.11717) goes both ways, but so do directions with nothing
    to find."""
    harmful, harmless = instructions()
    answers = mi.suite(audits_dir() / "unsafe_advice/suites/refusals.jsonl", positive="refusing")
    requests = mi.concat(harmful, mi.suite(harmless[:260], name="harmless"), name="requests")
    at, asked = mi.at("resid_post", layer=16), mi.suite(harmless[260:280], name="asked")
    refusing = mi.probe("refusing", method="difference_of_means", at=at, tokens="response", fit=answers["train"])
    harm = mi.probe("harm", method="difference_of_means", at=at, fit=requests)
    opening = mi.effects.log_odds("I'm", "Sorry")
    sweep = auditor.steer(refusing, on=asked, strengths=(-1, -0.5, 0.5, 1), effect=opening)
    for claim in (sweep.slope() > sweep.null.slope(), sweep.smallest_step() > 0, sweep.sign_reversal() > 0):
        assert claim.verdict is Verdict.PASS
    sweep = auditor.steer(harm, on=asked, strengths=(-2, 2), effect=opening)
    assert sweep.smallest_step().value > 0
    assert sweep.sign_reversal().value > 0
    claim = sweep.slope() > sweep.null.slope()
    assert claim.verdict is Verdict.INCONCLUSIVE
    assert claim.estimate.low > 0
    assert all(null.p > 0.1 for null in claim.estimate.controls.nulls)


def instructions():
    """Of Arditi et al. (2024): harmful ones as a suite, harmless ones in an order drawn once."""
    columns = {"text": "instruction"}
    harmful = mi.suite(DATA / "unsafe/harmful_train.json", columns=columns, chat=True, label=True)
    harmless = mi.suite(DATA / "unsafe/harmless_val.json", columns=columns, chat=True, label=False)
    return harmful, list(harmless.sample(600, seed=0))
