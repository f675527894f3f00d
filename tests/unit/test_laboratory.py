"""Experiments equal plain hooks of torch, prompt by prompt; what fails or is broken off leaves nothing in the model, and what was measured stays."""

import random
from math import exp

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mi_audit as mi
from mi_audit.causal import arms, refusals
from mi_audit.causal.laboratory import Laboratory
from mi_audit.detectors.bench import Bench
from mi_audit.engine.cache import ActivationCache
from mi_audit.errors import DetectorError
from mi_audit.model.load import load
from mi_audit.plan.steering import DoseSpec, ablate_spec, steer_spec
from mi_audit.suites.suite import suite
from tests.agreement.tiny_models import LAYERS
from tests.unit.plain_steering import goes_on, heard, left_in, logits, save_with_sink

ALPHA, DRAWS, LAYER, STRENGTHS = 0.025, 39, 1, (-2.0, 1.5)
EFFECTS = mi.effects
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


def made(name, n, *, groups=1, longest=20, **fields):
    draw = random.Random(name)
    rows = []
    for row in range(n):
        text = "".join(draw.choices("abcdefgh ", k=draw.randint(9, longest))) + ("yes" if row % 2 else "no")
        own = {key: value[row % len(value)] for key, value in fields.items()}
        rows.append({"id": f"{name}{row}", "text": text, "group": f"{name}{row // groups}", **own})
    return suite(rows, name=name)


FIT = suite(
    [{"id": each.id, "text": each.text, "group": each.group, "label": number % 2 == 1} for number, each in enumerate(made("fit", 24, groups=2))], name="fit"
)
ASKED = made("asked", 5, right=("ye", "ok"), wrong=("no", "up"), other=("xi", " m"))
NEUTRAL = made("neutral", 6, groups=2, longest=150, answer=("yes", " a"), other=("no", "bcd"))
PROBE = mi.probe("probe", method="difference_of_means", at=mi.at("resid_post", layer=LAYER), fit=FIT)
SHARP = mi.probe("sharp", method="mass_mean", at=mi.at("resid_post", layer=LAYER), fit=FIT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_with_sink(tmp_path_factory.mktemp("models") / "sink")


@pytest.fixture(scope="module")
def model(folder):
    return load(str(folder), device="cpu", progress=False)


def laboratory(model, cache=None):
    return Laboratory(Bench(model, alpha=ALPHA, seed=3, cache=cache), model, alpha=ALPHA, seed=3)


def steer(detector=PROBE, effect=None, strengths=STRENGTHS, on=ASKED, **options):
    effect = EFFECTS.logit_difference("a", "b") if effect is None else effect
    return steer_spec(detector, on, effect, strengths, **{"unit": None, "tokens": "generated", "profile": (), "controls": False, **options})


def ablate(detector=PROBE, everywhere=None, tokens="all", controls=False, effect=None):
    effect = EFFECTS.logit_difference("a", "b") if effect is None else effect
    return ablate_spec(detector, ASKED, effect, everywhere=everywhere, tokens=tokens, controls=controls)


def ids_of(model, text):
    return tuple(model.tokenizer(text).input_ids)


def token(model, text):
    return model.tokenizer(text, add_special_tokens=False).input_ids[0]


def block(model, layer=LAYER):
    return [model.hf.model.layers[layer]]


def classes(model):
    """Positives and negatives of the fit suite [n, width] each, as plain hooks read them."""
    acts = torch.stack([heard(model.hf, ids_of(model, each.text), LAYER)[-1] for each in FIT]).double()
    labels = torch.tensor([each.label for each in FIT])
    return acts[labels], acts[~labels]


def vector(model):
    positive, negative = classes(model)
    return (positive.mean(dim=0) - negative.mean(dim=0)).float()


def touched_of(ids, tokens):
    """Without the sink, which is the first."""
    return {"generated": [len(ids) - 1], "prompt": list(range(1, len(ids))), "all": list(range(1, len(ids)))}[tokens]


def adding(vector, strength):
    return None if strength is None else lambda acts: acts + strength * vector


def after(model, text, tokens, modules, change, answer=()):
    """The logits [K, vocabulary] that predict the answer's tokens, or what comes first."""
    ids = ids_of(model, text)
    touched = [*touched_of(ids, tokens), *(range(len(ids), len(ids) + len(answer) - 1) if tokens != "prompt" else ())]
    return logits(model.hf, (*ids, *answer), modules, touched, change)[len(ids) - 1 : len(ids) - 1 + max(1, len(answer))]


def likelihood(model, prompt, name, *rest):
    answer = tuple(model.tokenizer(prompt.field(name), add_special_tokens=False).input_ids)
    found = after(model, prompt.text, *rest, answer=answer).double().log_softmax(dim=-1)
    return sum(float(found[place, one]) for place, one in enumerate(answer))


def seventh(logits, prompt):
    return logits[:, 7] * len(prompt.text)


def letters(text, prompt):
    return sum(map(ord, text)) / len(prompt.text)


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
        "function": float(first[7]) * len(prompt.text),
    }[name]


LATER = {}
READER = mi.probe("reader", method="difference_of_means", at=mi.at("resid_post", layer=2), fit=FIT)
KINDS = {
    "logit_difference": EFFECTS.logit_difference(("a", "b", "ab"), "c"),
    "probability": EFFECTS.probability("a", "bc"),
    "log_likelihood": EFFECTS.log_likelihood("right"),
    "choice": EFFECTS.choice("right", "wrong", "other"),
    "detector_score": EFFECTS.detector_score(READER),
    "function": EFFECTS.function(seventh),
    "refusal": EFFECTS.refusal(max_new_tokens=12),
    "of_text": EFFECTS.of_text(letters, max_new_tokens=12),
}


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
