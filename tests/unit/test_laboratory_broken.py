"""What fails or is broken off leaves nothing in the model, and what was measured stays; what was measured once is not measured again."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import mi_audit as mi
from mi_audit.causal import arms
from mi_audit.engine.cache import ActivationCache
from mi_audit.errors import DetectorError, NotFiniteError
from mi_audit.model.load import load
from mi_audit.plan.steering import DoseSpec
from mi_audit.stats.verdict import Verdict
from mi_audit.suites.suite import suite
from tests.agreement.tiny_models import tiny
from tests.unit.experiments import ASKED, FIT, KINDS, LAYER, NEUTRAL, STRENGTHS, laboratory, made, opened, steer
from tests.unit.plain_steering import left_in, save_with_sink


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("models") / "sink")


@pytest.fixture
def direction(tmp_path):
    """One of length 100·√32, so that float32 does not hold 1e38 of it."""
    save_file({"direction": 100 * np.ones(32)}, tmp_path / "direction.safetensors")
    return mi.direction("far", tmp_path / "direction.safetensors", at=mi.at("resid_post", layer=LAYER))


@pytest.mark.parametrize("effect", [KINDS["logit_difference"], KINDS["of_text"]])
def test_strengths_that_overflow_are_named_and_the_others_measured(effect, model, direction):
    before, lab = left_in(model.hf), laboratory(model)
    spec = steer(direction, effect, (-1e38, 1e-3, 2e-3, 1e38))
    lab.expect([steer(direction, KINDS["log_odds"], spec.strengths)])  # sharing its passes does not hide which strength it was
    made = lab.experiment(spec)
    assert made.strengths == (1e-3, 2e-3) and made.failed.keys() == {-1e38, 1e38} and made.values.shape == (2, len(ASKED)) and made.direct is not None
    np.testing.assert_array_equal(made.values, laboratory(model).experiment(steer(direction, effect, (1e-3, 2e-3))).values)
    assert made.failed[1e38].startswith("at the strength 1e+38, resid_post at layer 1: ") and made.failed[1e38].endswith("; take smaller strengths")
    for quantity in ("slope", "smallest_step", "sign_reversal"):
        with pytest.raises(DetectorError, match=r"at the strength -1e\+38, resid_post at layer 1: .* not finite|at the strength 1e\+38, resid_post at layer 1"):
            lab.estimate(DoseSpec(spec, quantity))
    for failing in (DoseSpec(spec, "change", 1e38), DoseSpec(spec, "kl", 1e38, neutral=NEUTRAL)):
        with pytest.raises(DetectorError, match=r"at the strength 1e\+38, resid_post at layer 1: "):
            lab.estimate(failing)
    change = lab.estimate(DoseSpec(spec, "change", 2e-3))
    assert change.value == pytest.approx((made.values[1] - made.unsteered).mean())
    assert lab.estimate(DoseSpec(spec, "kl", 2e-3, neutral=NEUTRAL)).value >= 0
    with pytest.raises(DetectorError, match=r"at the strength 1e\+38, resid_post at layer 1"):
        laboratory(model).experiment(steer(direction, effect, (1e38,)))
    assert left_in(model.hf) == before


@pytest.mark.parametrize("effect", [KINDS["logit_difference"], KINDS["of_text"]])
def test_a_model_that_is_broken_as_it_is_is_no_fault_of_a_strength(effect, tmp_path):
    hf, tokenizer = tiny("llama")
    hf.lm_head.weight.data[40] = float("inf")
    hf.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(NotFiniteError) as caught:
        laboratory(load(str(tmp_path / "model"), device="cpu", progress=False)).experiment(steer(effect=effect))
    assert caught.value.variant is None and "strength" not in str(caught.value)


CALLS = {"left": -1, "error": RuntimeError}


def fails_at_last(logits, prompt):
    CALLS["left"] -= 1
    if CALLS["left"] == 0:
        raise CALLS["error"]("the lights went out")
    return logits[:, 3]


@pytest.mark.parametrize(
    ("error", "raised", "reason"), [(KeyboardInterrupt, KeyboardInterrupt, "interrupted"), (RuntimeError, DetectorError, "the lights went out at prompt")]
)
def test_what_is_broken_off_in_the_nulls_keeps_its_dose_response(error, raised, reason, model):
    before, lab, spec = left_in(model.hf), laboratory(model), steer(effect=mi.effects.function(fails_at_last), controls=True)
    CALLS.update(left=-1, error=error)
    whole = laboratory(model).experiment(spec)
    asked = -1 - CALLS["left"]
    CALLS["left"] = -1
    alone = laboratory(model).experiment(replace(spec, controls=False))
    along = 2 * len(ASKED)  # of each prompt as it is, and of its variants together
    assert asked > -1 - CALLS["left"] > along

    CALLS["left"] = along + 4
    with pytest.raises(raised):
        lab.experiment(spec)
    made = lab.begun[spec]
    assert reason in made.error and not made.nulls and made.direct is None and not made.written
    np.testing.assert_array_equal(made.values, whole.values)
    np.testing.assert_array_equal(made.values, alone.values)
    assert left_in(model.hf) == before
    CALLS["left"] = -1
    for asks in (lambda: lab.experiment(spec), lambda: lab.estimate(DoseSpec(spec, "slope")), lambda: lab.estimate(DoseSpec(spec, "kl", 1.5, neutral=NEUTRAL))):
        with pytest.raises(DetectorError, match=f"asked steered along probe, function.*: .*{reason}"):
            asks()
    CALLS["left"] = 7  # at the fourth prompt
    lab = laboratory(model)
    with pytest.raises(raised):
        lab.experiment(spec)
    made = lab.begun[spec]
    assert reason in made.error and not made.nulls and made.suite.ids() == ASKED.ids()[:3]
    np.testing.assert_array_equal(made.values, whole.values[:, :3])
    np.testing.assert_array_equal(made.unsteered, whole.unsteered[:3])
    with pytest.raises(DetectorError, match=reason):
        lab.estimate(DoseSpec(spec, "slope"))
    CALLS["left"] = 1
    lab = laboratory(model)
    with pytest.raises(raised):
        lab.experiment(spec)
    assert not lab.begun and left_in(model.hf) == before
    assert lab.experiment(spec).error is None  # nothing of it had been measured: it is made anew


def gone(logits, prompt):
    return {}["gone"]


def no_number(text, prompt):
    return None


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        (mi.effects.function(gone), r"the function \(test_laboratory_broken.py:\d+\) raised KeyError: 'gone' at prompt 'asked0'"),
        (mi.effects.of_text(no_number), r"the function \(test_laboratory_broken.py:\d+\) raised TypeError: .* at prompt 'asked0'"),
    ],
)
def test_what_a_function_of_the_author_raises_names_it(effect, message, model):
    with pytest.raises(DetectorError, match=message):
        laboratory(model).experiment(steer(effect=effect))


def test_what_is_in_the_cache_is_not_measured_again(model, tmp_path, monkeypatch):
    passes, read = [], arms.read_variants
    monkeypatch.setattr(arms, "read_variants", lambda *args, **options: passes.append(1) or read(*args, **options))

    def again(spec):
        passes.clear()
        return laboratory(model, ActivationCache.of(model, tmp_path)).experiment(spec), len(passes)

    for effect in (KINDS["logit_difference"], KINDS["choice"], KINDS["detector_score"]):
        spec = steer(effect=effect, controls=True)
        (first, some), (second, none) = again(spec), again(spec)
        assert some > 0 and none == 0
        for one, other in [
            (first.unsteered, second.unsteered),
            (first.values, second.values),
            *((first.nulls[name], second.nulls[name]) for name in first.nulls),
        ]:
            np.testing.assert_array_equal(one, other)
        assert (first.direct is None) == (effect is KINDS["detector_score"])
    spec = steer(controls=True)
    assert again(spec)[1] and not again(spec)[1]
    fewer = ASKED.head(4)
    for other in (steer(strengths=(-2.0, 1.0)), steer(on=fewer), steer(tokens="all"), steer(unit="norm"), steer(effect=mi.effects.logit_difference("a", "c"))):
        assert again(other)[1]
        assert not again(other)[1]
    answered = suite([{"id": each.id, "text": each.text, "right": "no"} for each in ASKED], name=ASKED.name)
    for on in (ASKED, answered):
        assert again(steer(effect=KINDS["log_likelihood"], on=on))[1]
    for _ in range(2):
        assert again(steer(effect=KINDS["function"]))[1]


def test_what_was_measured_for_several_experiments_at_once_is_the_same_from_the_cache(model, tmp_path):
    specs = [steer(effect=KINDS[name], controls=True) for name in ("logit_difference", "probability", "log_odds")]

    def made(cache):
        lab = laboratory(model, cache)
        lab.expect(specs)
        return [lab.experiment(spec) for spec in specs]

    cache = ActivationCache.of(model, tmp_path)
    for one, *others in zip(made(None), made(cache), made(cache), strict=True):
        for other in others:
            np.testing.assert_array_equal(one.unsteered, other.unsteered)
            np.testing.assert_array_equal(one.values, other.values)
            np.testing.assert_array_equal(one.direct, other.direct)
            assert all((draws == other.nulls[name]).all() for name, draws in one.nulls.items())


def test_scores_in_the_cache_are_of_what_was_learned(model, tmp_path):
    """A layer that is chosen with another seed is another detector, of the same spec."""
    draw = random.Random(0)
    noisy = suite([{"text": each.text, "group": each.group, "label": draw.random() < 0.5} for each in made("noisy", 60)], name="noisy")
    reader = mi.sweep(mi.probe("reader", method="difference_of_means", at=mi.at("resid_post", depth=0.5), fit=noisy))
    early = mi.probe("early", method="difference_of_means", at=mi.at("resid_pre", layer=0), fit=FIT)
    spec = steer(early, mi.effects.detector_score(reader))
    layers = set()
    for seed in range(8):
        fresh, kept = (laboratory(model, cache, seed) for cache in (None, ActivationCache.of(model, tmp_path)))
        layers.add(kept._bench.detector(spec.effect.detector).at.layer)
        np.testing.assert_allclose(kept.experiment(spec).values, fresh.experiment(spec).values, rtol=1e-6)
    assert len(layers) > 1


def test_low_precision_decides_nothing(tmp_path):
    half = load(str(save_with_sink(tmp_path / "sink")), device="cpu", dtype="bfloat16", progress=False)
    lab, spec = laboratory(half), steer()
    for asked in (DoseSpec(spec, "slope"), DoseSpec(spec, "change", STRENGTHS[0]), DoseSpec(spec, "kl", STRENGTHS[0], neutral=NEUTRAL)):
        estimate = lab.estimate(asked)
        assert any("in low precision are not held against float32; run with --audit-dtype float32" in each for each in estimate.undecided)
        assert (estimate >= 1e3).verdict is Verdict.INCONCLUSIVE
    assert torch.isfinite(torch.from_numpy(lab.experiment(spec).values)).all()


@pytest.mark.parametrize("tokens", ["generated", "all"])
def test_the_same_answers_estimates_as_by_hand(tokens, model):
    lab, spec = laboratory(model), steer(tokens=tokens, strengths=(-2, -1, 1, 2), controls=True)
    made = lab.experiment(spec)
    doses, shifts = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), np.insert(made.values, 2, made.unsteered, axis=0)
    slope = np.polyfit(doses, shifts, 1)[0]
    assert lab.estimate(DoseSpec(spec, "slope")).value == pytest.approx(slope.mean())
    null = np.array([np.polyfit(doses, np.insert(draw, 2, made.unsteered, axis=0), 1)[0] for draw in made.nulls["shuffled labels"]])
    over = lab.estimate(DoseSpec(spec, "slope", over_null=True))
    assert over.value == pytest.approx((slope - null.mean(axis=0)).mean()) and over.excess
    controls = {each.name: each for each in over.controls.nulls}
    assert controls.keys() == made.nulls.keys()
    np.testing.assert_allclose(sorted(controls["shuffled labels"].statistics), sorted(null.mean(axis=1)), rtol=1e-6)
    assert lab.estimate(DoseSpec(spec, "sign_reversal")).value == pytest.approx(min((shifts[4] - shifts[2]).mean(), (shifts[2] - shifts[0]).mean()))
    assert lab.estimate(DoseSpec(spec, "smallest_step")).value == pytest.approx(np.diff(shifts, axis=0).mean(axis=1).min())
    np.testing.assert_allclose(made.moved("slope", None), slope)
