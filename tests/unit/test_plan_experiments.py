"""What is planned of experiments: what is refused and why, what a digest depends on, and which claims and faults a body gives."""

import inspect
import re
from dataclasses import fields, replace
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import mi_audit as mi
from mi_audit.auditor import Auditor
from mi_audit.errors import PlanError
from mi_audit.plan.effects import EffectSpec
from mi_audit.plan.leaks import one_source
from mi_audit.plan.measurements import ClaimSpec, EstimateSpec, ReadSpec
from mi_audit.plan.plan import missing_instrument
from mi_audit.plan.steering import DoseSpec, SteerSpec, ablate_spec, steer_spec
from mi_audit.plan.tracing import trace_body
from mi_audit.suites.suite import suite
from tests.unit.saes import save_sae

FIT = suite([{"text": f"{row} {'yes' if row % 2 else 'no'}", "label": bool(row % 2), "group": f"{row // 2}"} for row in range(40)], name="fit")
ASKED = suite([{"text": f"asked {row}", "right": " yes", "wrong": " no", "count": row, "empty": "" if row == 3 else "x"} for row in range(8)], name="asked")
ONE_GROUP = suite([{"text": f"one {row}", "group": "g"} for row in range(8)], name="one")
PROBE = mi.probe("probe", method="difference_of_means", at=mi.at("resid_post", layer=1), fit=FIT["train"])
QUESTIONS = suite([{"text": f"q {row}", "answer": " a", "other": " b"} for row in range(4)], name="questions")
NEURONS = mi.probe("neurons", method="difference_of_means", at=mi.at("mlp.hook_post", layer=1), fit=FIT["train"])
EFFECT = mi.effects.logit_difference("a", "b")


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """A latent of an SAE, and one of a transcoder."""
    hook = {"hook_name": "blocks.1.hook_resid_post"}
    folder = tmp_path_factory.mktemp("saes")
    there = {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"}
    saes = [mi.sae(save_sae(folder / "sae", 8, 20, metadata=hook)), mi.sae(save_sae(folder / "transcoder", 8, 20, "transcoder", metadata=there))]
    return [mi.latent(each, 3, name="latent") for each in saes]


def steer(detector=PROBE, on=ASKED, effect=EFFECT, strengths=(1,), unit=None, tokens="generated", profile=(), controls=True):
    return steer_spec(detector, on, effect, strengths, unit=unit, tokens=tokens, profile=profile, controls=controls)


def ablate(detector=PROBE, on=ASKED, effect=EFFECT, everywhere=None, tokens="generated", controls=True):
    return ablate_spec(detector, on, effect, everywhere=everywhere, tokens=tokens, controls=controls)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda: steer("probe"), r"model.steer\(probe, …\): the first argument is a detector made with mi.probe"),
        (lambda: ablate(None), r"model.ablate\(None, …\): the first argument is a detector"),
        (lambda: steer(on=["text"]), r"model.steer\(probe, …\): on=\['text'\]; give a suite made with mi.suite"),
        (lambda: steer(effect="refusal"), r"effect='refusal'; give one of mi.effects, e.g. mi.effects.refusal\(\)"),
        (lambda: steer(unit="max"), "unit='max'; of directions known are vector, norm, sd"),
        (lambda: steer(strengths="12"), "strengths='12'; give numbers such as"),
        (lambda: steer(strengths=1), "strengths=1; give numbers such as"),
        (lambda: steer(strengths=(1, True)), "the strength True is no finite number"),
        (lambda: steer(strengths=(1, float("nan"))), "the strength nan is no finite number"),
        (lambda: steer(strengths=(1, 4e38)), "the strength 4e\\+38 is more than float32 holds"),
        (lambda: steer(strengths=(1, 0)), "the strength 0 is the model as it is, which is always measured; leave it out"),
        (lambda: steer(strengths=()), "give 1 to 32 different strengths, not 0"),
        (lambda: steer(strengths=(1, 2, 1.0)), "give 1 to 32 different strengths, not 3 of which 2 differ"),
        (lambda: steer(strengths=range(1, 34)), "not 33 of which 33 differ"),
        (lambda: steer(tokens="last"), r"tokens='last'; known are generated, prompt, all, mi.span\(start, end\) and mi.last_of\(field\)"),
        (lambda: steer(profile=0.5), "profile=0.5; give depths such as"),
        (lambda: steer(profile=(0.5, 1.5)), r"profile=\(0.5, 1.5\); give at most 64 depths from 0 to 1"),
        (lambda: steer(effect=mi.effects.log_likelihood("missing")), r"log_likelihood\(answer=missing\): prompt '.*' has no field 'missing'; its fields are"),
        (lambda: steer(effect=mi.effects.log_likelihood("count")), r"log_likelihood\(answer=count\): the field 'count' of prompt '.*' holds 0, no text"),
        (lambda: steer(effect=mi.effects.choice("right", "empty")), r"choice\(right=right, wrong=empty\): the field 'empty' of prompt '.*' holds '', no text"),
        (lambda: ablate(NEURONS), "directions at mlp.hook_post are not those of the residual stream, so they can't be taken out everywhere: everywhere=False"),
        (lambda: steer(effect=mi.effects.detector_score(PROBE)), r"detector_score\(probe\) is its own, which it moves whatever the model does with it"),
        (lambda: mi.effects.logit_difference((), "b"), r"mi.effects.logit_difference\(…\): give one text or several, not \(\)"),
        (lambda: mi.effects.probability("a", 3), r"mi.effects.probability\(…\): give one text or several"),
        (lambda: mi.effects.refusal(openings=("",)), r"mi.effects.refusal\(…\): give one text or several"),
        (lambda: mi.effects.refusal(max_new_tokens=0), r"mi.effects.refusal\(max_new_tokens=0\): give a whole number from 1 to 512"),
        (lambda: mi.effects.log_likelihood(""), r"mi.effects.log_likelihood\(…\): name a field of the suite, not ''"),
        (lambda: mi.effects.choice("right"), "name the field of the right answer, and of one wrong answer at least"),
        (lambda: mi.effects.detector_score("probe"), r"mi.effects.detector_score\('probe'\): give a detector"),
        (lambda: steer(on=ONE_GROUP), "all prompts of one are in one group, so that the error of a change can't be seen"),
        (lambda: mi.effects.function(lambda logits: logits), r"it is called with \(logits, prompt\), which it does not take: too many positional arguments"),
        (lambda: mi.effects.of_text(lambda: 0.0), r"it is called with \(text, prompt\), which it does not take: too many positional arguments"),
        (lambda: steer(controls="no"), "controls='no'; give True or False"),
        (lambda: ablate(controls=None), "controls=None; give True or False"),
        (lambda: ablate(everywhere="no"), "everywhere='no'; give True or False"),
        (lambda: mi.effects.function(3), r"mi.effects.function\(3\): give a function"),
        (lambda: mi.effects.function(max), r"mi.effects.function\(.*max.*\): its source can't be read, so that a change of it would go unseen"),
        (lambda: mi.effects.function(made(object())), "it takes token from around it, a object, a change of which would go unseen; give it numbers or texts"),
        (lambda: mi.effects.of_text(made(1), max_new_tokens=513), r"mi.effects.of_text\(max_new_tokens=513\): give a whole number from 1 to 512"),
        (lambda: mi.effects.effect("vibes"), r"mi.effects.effect\('vibes'\): known are .*logit_difference"),
        (
            lambda: mi.effects.effect("probability", answers=[1]),
            r"mi.effects.effect\('probability', answers=\[1\]\): give a text, a number, or a tuple of texts",
        ),
    ],
)
def test_what_is_refused(asked, message):
    with pytest.raises(PlanError, match=message):
        asked()


def test_what_is_refused_of_latents_and_directions(latents, tmp_path):
    latent, transcoder = latents
    save_file({"direction": np.ones(8)}, tmp_path / "direction.safetensors")
    direction = mi.direction("direction", tmp_path / "direction.safetensors", at=mi.at("resid_post", layer=1))
    for asked, message in [
        (lambda: steer(latent, unit="vector"), "unit='vector'; of latents known are max"),
        (lambda: steer(latent, profile=(0.5,)), "latents are those of one layer's SAE; leave profile= out"),
        (lambda: ablate(latent, everywhere=True), "latents are clamped to 0 where their SAE encodes, not everywhere; leave everywhere= out"),
        (lambda: steer(transcoder), "latents of the architecture 'transcoder' can't be clamped; steer along a direction instead"),
        (
            lambda: steer(direction, unit="sd"),
            "unit='sd' is that of the scores on the suite that the detector is fitted on, and it has none; use 'vector' or 'norm'",
        ),
    ]:
        with pytest.raises(PlanError, match=message):
            asked()
    clamped = steer(latent, strengths=(2, 0, -1))
    assert (clamped.action, clamped.unit, clamped.strengths, clamped.origin) == ("clamp", "max", (-1.0, 0.0, 2.0), False)
    gone = ablate(latent)
    assert (gone.action, gone.strengths, gone.everywhere, gone.origin) == ("clamp", (0.0,), False, False)
    assert [(each.action, each.everywhere, each.origin) for each in (ablate(), ablate(NEURONS, everywhere=False))] == [
        ("project_out", True, True),
        ("project_out", False, True),
    ]


def made(token):
    return lambda logits, prompt: logits[:, token]


def with_default(token):
    def compute(logits, prompt, token=token):
        return logits[:, token]

    return compute


def through(token):
    inner = made(token)

    def compute(logits, prompt):
        return compute and inner(logits, prompt)

    return compute


NEGATED = (-1.0, 2.0)


def of_the_module(token):
    def compute(logits, prompt):
        return NEGATED[token - 1] * logits[:, 0]

    return compute


def wrapped(token):
    @wraps(letters)
    def compute(logits, prompt):
        return token * letters(logits, prompt)

    return compute


def letters(logits, prompt):
    return logits[:, 0]


def test_functions_that_cannot_be_told_apart_by_their_source_are_refused():
    with pytest.raises(PlanError, match="says lambda more than once, so that they can't be told apart; define a function for each"):
        _, _ = mi.effects.function(lambda logits, prompt: logits[:, 7]), mi.effects.function(lambda logits, prompt: -logits[:, 7])
    assert mi.effects.function(lambda logits, prompt: logits[:, 7]).source


def test_what_a_wrapper_does_counts_and_what_a_function_takes_from_its_module(monkeypatch):
    assert mi.effects.function(wrapped(2), name="letters") != mi.effects.function(letters)
    before = mi.effects.function(of_the_module(1))
    monkeypatch.setitem(globals(), "NEGATED", (1.0, 2.0))
    assert mi.effects.function(of_the_module(1)) != before


@pytest.mark.parametrize("maker", [made, with_default, through, wrapped])
def test_functions_that_close_over_other_values_are_other_effects(maker):
    one, same, other = (mi.effects.function(maker(token)) for token in (1, 1, 2))
    assert one == same and one.source == same.source
    assert one != other and one.describe() != other.describe()
    assert steer(effect=one).digest != steer(effect=other).digest


def test_digests_change_with_each_field(latents):
    base = steer(strengths=(-1, 1), profile=(0.5,))
    others = {
        "detector": NEURONS,
        "suite": ASKED.head(7),
        "effect": mi.effects.logit_difference("a", "c"),
        "action": "project_out",
        "strengths": (-1.0, 2.0),
        "unit": "norm",
        "tokens": mi.span(0, 3),
        "everywhere": True,
        "profile": (0.5, 0.75),
        "controls": False,
    }
    assert others.keys() == {each.name for each in fields(SteerSpec)}
    digests = [base.digest, *(replace(base, **{name: value}).digest for name, value in others.items())]
    assert len(set(digests)) == len(digests) and steer(strengths=(1, -1), profile=[0.5, 0.5]).digest == base.digest

    dose = DoseSpec(base, "change", 1.0)
    changed = [
        replace(dose, reading=steer()),
        replace(dose, quantity="kl"),
        replace(dose, strength=-1.0),
        replace(dose, over_null=True),
        replace(dose, neutral=FIT),
    ]
    assert len({dose.digest, *(each.digest for each in changed)}) == 6

    score = mi.effects.detector_score(PROBE)
    effects = [EFFECT, score, replace(score, detector=NEURONS), mi.effects.choice("right", "wrong"), mi.effects.choice("wrong", "right")]
    effects += [mi.effects.of_text(made(1), max_new_tokens=8), mi.effects.of_text(made(1), max_new_tokens=9), mi.effects.function(made(1), name="other")]
    assert len({str(each.describe()) for each in effects}) == len(effects) and all(isinstance(each, EffectSpec) for each in effects)
    assert [each.recomputable for each in effects] == [True] * 5 + [False] * 3


def traced(body):
    """(claims, faults), the faults without the file's name and with lines counted from the body's `def`."""
    trace = trace_body(lambda trace: body(Auditor(trace.evaluate, trace.attribute)), Path(__file__))
    start = body.__code__.co_firstlineno
    faults = [fault.removeprefix(f"{Path(__file__).name}:").split(":", 1) for fault in trace.faults]
    return [str(each.spec) for each in trace.claims], [(int(line) - start, message) for line, message in faults]


def sweep_of(model, strengths=(-1, 1), **options):
    return model.steer(PROBE, on=ASKED, effect=EFFECT, strengths=strengths, **options)


def test_claims_are_noted():
    def body(model):
        sweep = sweep_of(model)
        assert sweep.slope() > sweep.null.slope()
        assert sweep.sign_reversal() >= 0.5
        assert sweep.at(-1).change() < sweep.at(-1).null.change()
        assert sweep.at(1).side_effects(on=FIT["test"]).kl() <= 0.1
        ablation = model.ablate(PROBE, on=ASKED, effect=EFFECT)
        assert ablation.change() < ablation.null.change()

    steered = f"asked steered along probe, {EFFECT}"
    claims, faults = traced(body)
    assert not faults and claims == [
        f"{steered}: slope() > null.slope()",
        f"{steered}: sign_reversal() >= 0.5",
        f"{steered}: change() at -1 < null.change()",
        f"{steered}: kl() at 1 on {FIT['test'].name} <= 0.1",
        f"asked without probe, {EFFECT}: change() < null.change()",
    ]


def another_sweep(model):
    one, other = sweep_of(model), sweep_of(model, (-1, 2))
    assert one.slope() > other.null.slope()


def another_quantity(model):
    sweep = sweep_of(model)
    assert sweep.slope() > sweep.null.sign_reversal()


def another_strength(model):
    sweep = sweep_of(model)
    assert sweep.at(1).change() > sweep.at(-1).null.change()


def null_as_number(model):
    sweep = sweep_of(model)
    assert sweep.null.slope() > 0


def null_on_the_left(model):
    sweep = sweep_of(model)
    assert sweep.null.slope() < sweep.slope()


def null_in_arithmetic(model):
    sweep = sweep_of(model)
    assert sweep.slope() > 2 * sweep.null.slope()


def strength_not_measured(model):
    sweep = sweep_of(model)
    assert sweep.at(0.5).change() > 0


def one_sign(model):
    sweep = sweep_of(model, (1, 2))
    assert sweep.sign_reversal() > 0


def one_sign_of_the_null(model):
    sweep = sweep_of(model, (1, 2))
    assert sweep.slope() > sweep.null.sign_reversal()


def unknown_quantity(model):
    sweep = sweep_of(model)
    assert sweep.auroc() > 0.5


def fitted_on(model):
    assert model.steer(PROBE, on=FIT["train"], effect=EFFECT, strengths=(1,)).slope() > 0


def score_of_what_has_seen(model):
    reader = mi.probe("reader", method="difference_of_means", at=mi.at("resid_post", layer=2), fit=FIT["test"])
    assert model.steer(PROBE, on=FIT["test"], effect=mi.effects.detector_score(reader), strengths=(1,)).slope() > 0


def neutral_seen(model):
    sweep = sweep_of(model)
    assert sweep.at(1).side_effects(on=FIT["train"]).kl() <= 1


def neutral_is_no_suite(model):
    sweep = sweep_of(model)
    assert sweep.at(1).side_effects(on="text").kl() <= 1


def no_questions(model):
    sweep = sweep_of(model)
    assert sweep.at(1).side_effects(on=ASKED).capability_change() >= -0.1


def nothing_is_asked(model):
    sweep, same = sweep_of(model), [{"text": f"q {row}", "answer": " a", "other": " b" if row else " a"} for row in range(4)]
    assert sweep.at(1).side_effects(on=suite(same, name="same")).capability_change() >= -0.1


def neutral_repeated(model):
    sweep, same = sweep_of(model), [{"id": f"{row}", "text": "q", "answer": " a", "other": " b"} for row in range(4)]
    assert sweep.at(1).side_effects(on=suite(same, name="same")).capability_change() >= -0.1


def answered_in_the_fit(model):
    answers = suite([{"text": each.text, "response": answer, "label": answer == "no"} for each in ASKED for answer in ("yes", "no")], name="answers")
    fitted = mi.probe("fitted", method="difference_of_means", at=mi.at("resid_post", layer=1), tokens="response", fit=answers)
    assert model.steer(fitted, on=ASKED, effect=EFFECT, strengths=(1,)).slope() > 0


def decides_nothing(model):
    sweep = sweep_of(model)
    assert sweep.at(1).side_effects(on=FIT["test"]).kl() >= -1


def no_change_of_a_share(model):
    sweep = sweep_of(model)
    assert sweep.at(1).side_effects(on=QUESTIONS).capability_change() >= -1


def neutral_in_one_group(model):
    sweep = sweep_of(model)
    assert sweep.at(1).side_effects(on=ONE_GROUP).kl() <= 1


def null_without_controls(model):
    sweep = sweep_of(model, controls=False)
    assert sweep.slope() > sweep.null.slope()


@pytest.mark.parametrize(
    ("body", "line", "message"),
    [
        (no_change_of_a_share, 2, r"capability_change\(\) at 1 .* >= -1` decides nothing: .*Choose a threshold strictly between -1 and 1"),
        (neutral_in_one_group, 2, "all prompts of one are in one group"),
        (null_without_controls, 2, "with controls=False there is no null to compare with; leave it out"),
        (another_sweep, 2, "is compared with the null of"),
        (another_quantity, 2, r"slope\(\)` is compared with the null of .*sign_reversal\(\)`; compare it with its own"),
        (another_strength, 2, r"change\(\) at 1` is compared with the null of .*change\(\) at -1`; compare it with its own"),
        (null_as_number, 2, r"null.slope\(\) is only for an estimate to be compared with, which stands on the left: sweep.slope\(\) > sweep.null.slope\(\)"),
        (null_in_arithmetic, 2, r"null.slope\(\) is only for an estimate to be compared with"),
        (null_on_the_left, 2, r"null.slope\(\) is only for an estimate to be compared with, which stands on the left"),
        (strength_not_measured, 2, r"at\(0.5\): measured are the strengths -1, 1"),
        (one_sign, 2, r"sign_reversal\(\) of asked steered along probe, .*: it takes a strength below 0 and one above; measured are 1, 2"),
        (one_sign_of_the_null, 2, "it takes a strength below 0 and one above"),
        (unknown_quantity, 2, r"there is no 'auroc' here; known are slope\(\), smallest_step\(\), sign_reversal\(\), at\(strength\), null"),
        (fitted_on, 1, r"probe is tested on fit.*train.*, but its prompt .* also stands .*; test on other groups, e.g. another split"),
        (score_of_what_has_seen, 2, "reader is tested on fit.*test.*, but its prompt .* also stands"),
        (neutral_seen, 2, "probe is tested on fit.*train.*, but its prompt .* also stands"),
        (neutral_is_no_suite, 2, r"side_effects\(on='text'\): give a suite of neutral text, such as mi.suite\('neutral_text'\), with at least one prompt"),
        (nothing_is_asked, 2, r"capability_change\(\) on same: the fields 'answer' and 'other' of prompt '.*' hold the same text, so it asks nothing"),
        (neutral_repeated, 2, "the prompts '.*' and '.*' of same have the same content and different groups"),
        (answered_in_the_fit, 3, r"fitted is tested on asked, but its prompt '.*' also stands \(as '.*'\) in answers, which it is fitted on"),
        (no_questions, 2, r"capability_change\(\) on asked: prompt .* has no field 'answer'"),
        (decides_nothing, 2, r"kl\(\) at 1 .* >= -1` decides nothing"),
    ],
)
def test_faults_name_the_line(body, line, message):
    _, faults = traced(body)
    ((at, told),) = faults
    assert at == line, inspect.getsource(body)
    assert re.search(message, told), told


def test_a_claim_about_the_model_that_little_changes_needs_a_handle_that_is_shown_to_move_something():
    reads = ClaimSpec(EstimateSpec(ReadSpec(PROBE, FIT["test"]), "auroc"), ">=", 0.8)
    little, pushes = (ClaimSpec(DoseSpec(steer(), "slope"), op, 0.1) for op in ("<=", ">="))
    assert "tells its classes apart" in missing_instrument(little, [pushes])
    assert "moves what the model says" in missing_instrument(little, [reads])
    assert "moves what the model says" in missing_instrument(little, [reads, little]), "that it moves little elsewhere shows no handle"
    assert missing_instrument(little, [reads, pushes]) is None and missing_instrument(pushes, [reads]) is None
    scored_push = ClaimSpec(DoseSpec(steer(effect=mi.effects.detector_score(NEURONS)), "slope"), ">=", 0.1)
    assert "moves what the model says" in missing_instrument(little, [reads, scored_push]), "a score at a later layer is nothing that it says"
    beside = ClaimSpec(DoseSpec(steer(), "kl", 1.0, neutral=FIT["test"]), "<=", 0.1)
    assert "moves what the model says" in missing_instrument(beside, [reads])
    assert "says nothing of how the model behaves" in missing_instrument(scored_push, [reads, pushes])


def test_suites_put_together_have_the_sources_of_their_parts():
    together = mi.concat(FIT["test"], suite([{"text": f"other {row}", "label": True} for row in range(4)], name="other"), name="together")
    assert one_source(FIT["train"], together) and not one_source(ASKED, together)
