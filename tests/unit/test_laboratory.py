"""Experiments equal plain hooks of torch, prompt by prompt: effects, units and nulls."""

from math import exp

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import mi_audit as mi
from mi_audit.causal import refusals
from mi_audit.plan.steering import DoseSpec
from tests.agreement.tiny_models import LAYERS
from tests.unit.experiments import (
    ASKED,
    CLOSE,
    DRAWS,
    FIT,
    KINDS,
    LAYER,
    NEUTRAL,
    PROBE,
    READER,
    SHARP,
    STRENGTHS,
    ablate,
    adding,
    after,
    block,
    classes,
    ids_of,
    laboratory,
    letters,
    likelihood,
    opened,
    steer,
    token,
    touched_of,
    vector,
)
from tests.unit.plain_steering import goes_on, heard, save_with_sink

LATER = {}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("models") / "sink")


def plain(model, name, prompt, tokens, modules, change):
    """An effect, of the text of the definition alone."""
    rest = (tokens, modules, change)
    if name == "log_likelihood":
        return likelihood(model, prompt, "right", *rest)
    if name == "choice":
        own, *others = (exp(likelihood(model, prompt, field, *rest)) for field in ("right", "wrong", "other"))
        return own / (own + sum(others))
    if name in ("refusal", "of_text"):
        ids = ids_of(model, prompt.text)
        written = goes_on(model.hf, ids, 12, modules, touched_of(ids, tokens), change, on_generated=tokens != "prompt")
        text = model.tokenizer.decode(written, skip_special_tokens=True)
        return float(any(each in text.lower() for each in refusals.PHRASES)) if name == "refusal" else letters(text, prompt)
    if name == "detector_score":
        ids = ids_of(model, prompt.text)
        read = heard(model.hf, ids, 2, modules, touched_of(ids, tokens), change)[-1].double().numpy()
        return float((read - LATER["centre"]) @ LATER["weight"])
    first = after(model, prompt.text, *rest)[0].double()
    p = first.softmax(dim=-1)
    a, b, c = (token(model, each) for each in "abc")
    return {
        "logit_difference": float(torch.log(p[a] + p[b]) - torch.log(p[c])),
        "probability": float(p[a] + p[b]),
        "log_odds": float(torch.log(p[a] + p[b]) - torch.log1p(-p[a] - p[b])),
        "function": float(first[7]) * len(prompt.text),
    }[name]


def test_shuffles_that_give_the_very_direction_do_as_much_as_it(model):
    few = mi.suite([{"id": each.id, "text": each.text, "group": f"{row // 2}", "label": row % 2 == 1} for row, each in enumerate(FIT.prompts[:4])], name="few")
    spec = steer(mi.probe("few", method="difference_of_means", at=mi.at("resid_post", layer=LAYER), fit=few), controls=True)
    lab = laboratory(model)
    estimate = lab.estimate(DoseSpec(spec, "slope", over_null=True))
    handle = lab.experiment(spec).handle
    same = int(np.isclose(handle.nulls["shuffled labels"] @ handle.own, handle.own @ handle.own).sum())
    shuffled = next(null for null in (estimate > 0.0).controls.nulls if null.name == "shuffled labels")
    assert same > 0 and sum(each == shuffled.observed for each in shuffled.statistics) == same


@pytest.mark.parametrize("tokens", ["generated", "prompt", "all"])
@pytest.mark.parametrize("name", KINDS)
def test_effects_equal_plain_hooks(name, tokens, model, monkeypatch):
    monkeypatch.setattr(refusals, "PHRASES", ("x",))  # what a random model writes is no phrase of English
    lab, v = laboratory(model), vector(model)
    if name == "detector_score":
        fitted = lab._bench.learned(READER).detector
        LATER.update(weight=fitted.weight, centre=fitted.centre)
    found = lab.experiment(steer(effect=KINDS[name], tokens=tokens))
    expected = [[plain(model, name, each, tokens, block(model), adding(v, strength)) for each in ASKED] for strength in (None, *STRENGTHS)]
    np.testing.assert_allclose(found.unsteered, expected[0], **CLOSE)
    np.testing.assert_allclose(found.values, expected[1:], **CLOSE)
    assert np.abs(found.values - found.unsteered).max() > 1e-3
    assert found.strengths == STRENGTHS and not found.failed and not found.nulls


@pytest.mark.parametrize("detector", [PROBE, SHARP])
@pytest.mark.parametrize("unit", ["vector", "sd", "norm"])
def test_units_and_nulls(detector, unit, model):
    lab = laboratory(model)
    spec = steer(detector, unit=unit, controls=True)
    found = lab.experiment(spec)
    positive, negative = classes(model)
    way = torch.from_numpy(lab._bench.learned(detector).detector.weight)
    way = way / way.norm()
    apart = float((positive.mean(dim=0) - negative.mean(dim=0)) @ way)
    spread = float(torch.cat([(each - each.mean(dim=0)) @ way for each in (positive, negative)]).square().mean().sqrt())
    length = {"vector": apart, "sd": spread, "norm": 1.0}[unit]
    np.testing.assert_allclose(found.handle.own, length * way.numpy(), rtol=1e-3, atol=1e-5)

    def change(direction, strength):
        added = torch.from_numpy(direction).float()
        return lambda acts: acts + strength * added * (acts.norm(dim=-1, keepdim=True) if unit == "norm" else 1.0)

    def differences(direction, modules):
        rows = []
        for strength in STRENGTHS:
            all_after = [after(model, each.text, "generated", modules, change(direction, strength))[0] for each in ASKED]
            rows.append([float(each[token(model, "a")] - each[token(model, "b")]) for each in all_after])
        return rows

    np.testing.assert_allclose(found.values, differences(found.handle.own, block(model)), **CLOSE)
    assert found.nulls.keys() == {"shuffled labels", "random directions"}
    for name, draws in found.handle.nulls.items():
        assert draws.shape == (DRAWS, 32) and found.nulls[name].shape == (DRAWS, len(STRENGTHS), len(ASKED))
        np.testing.assert_allclose(np.linalg.norm(draws, axis=1), length, rtol=1e-6 if unit == "norm" else 1e-3)
        np.testing.assert_allclose(found.nulls[name][17], differences(draws[17], block(model)), **CLOSE)
    if unit == "norm":
        assert found.direct is None
    else:
        np.testing.assert_allclose(found.direct, differences(found.handle.own, block(model, LAYERS - 1)), **CLOSE)
    if detector is PROBE:  # a difference of class means of labels that are shuffled within pairs: each text counts for or against, its partner the other way
        rows = torch.stack([heard(model.hf, ids_of(model, each.text), LAYER)[-1] for each in FIT]).double()
        pairs = (rows[1::2] - rows[::2]).numpy()
        signs = np.linalg.lstsq(pairs.T, found.handle.nulls["shuffled labels"].T, rcond=None)[0]
        np.testing.assert_allclose(np.abs(signs), np.abs(signs).max(axis=0, keepdims=True).repeat(len(pairs), axis=0), rtol=0.02)
        assert len({tuple(row > 0) for row in signs.T}) > DRAWS // 2


def test_a_direction_that_was_found_elsewhere_is_held_against_the_prompts_covariance_and_against_all_of_space(tmp_path, model):
    vector = np.random.default_rng(0).standard_normal(32)
    save_file({"direction": vector}, tmp_path / "elsewhere.safetensors")
    elsewhere = mi.direction("elsewhere", tmp_path / "elsewhere.safetensors", at=mi.at("resid_post", layer=LAYER))
    found = laboratory(model).experiment(steer(elsewhere, controls=True))
    nulls = found.handle.nulls
    assert nulls.keys() == found.nulls.keys() == {"random directions", "isotropic directions"}
    acts = torch.stack([heard(model.hf, ids_of(model, each.text), LAYER)[-1] for each in ASKED]).double().numpy()
    within = np.linalg.svd(acts - acts.mean(axis=0), full_matrices=False)[2][: len(ASKED) - 1]
    share = {name: np.square(draws @ within.T).sum(axis=1) / np.square(draws).sum(axis=1) for name, draws in nulls.items()}
    np.testing.assert_allclose(share["random directions"], 1.0, rtol=1e-4)
    assert abs(share["isotropic directions"].mean() - len(within) / 32) < 0.05
    for draws in nulls.values():
        assert draws.shape == (DRAWS, 32)
        np.testing.assert_allclose(np.linalg.norm(draws, axis=1), np.linalg.norm(vector), rtol=1e-9)


def test_a_script_makes_claims_of_experiments(tmp_path, model):
    auditor = mi.load_model(str(save_with_sink(tmp_path / "sink")), device="cpu", seed=3, cache=False)
    sweep = auditor.steer(PROBE, on=ASKED, strengths=STRENGTHS, effect=KINDS["logit_difference"])
    lab, spec = laboratory(model), steer(effect=KINDS["logit_difference"], controls=True)
    claim = sweep.slope() > sweep.null.slope()
    assert claim.estimate.value == lab.estimate(DoseSpec(spec, "slope", over_null=True)).value and claim.estimate.excess
    assert sweep.slope().value == lab.estimate(DoseSpec(spec, "slope")).value
    assert sweep.at(1.5).change().value == lab.estimate(DoseSpec(spec, "change", 1.5)).value
    assert sweep.at(-2).side_effects(on=NEUTRAL).kl().value == lab.estimate(DoseSpec(spec, "kl", -2.0, neutral=NEUTRAL)).value
    ablation = auditor.ablate(PROBE, on=ASKED, effect=KINDS["logit_difference"], tokens="all", controls=False)
    assert ablation.change().value == lab.estimate(DoseSpec(ablate(effect=KINDS["logit_difference"]), "change", 1.0)).value
