"""Ablations, clamps and side effects equal plain hooks of torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mi_audit as mi
from mi_audit.causal.making import _writers
from mi_audit.causal.rows import Projections
from mi_audit.causal.tasks import asked
from mi_audit.engine.variants import Read, read_variants
from mi_audit.errors import DetectorError
from mi_audit.model.load import load
from mi_audit.plan.places import At
from mi_audit.plan.steering import DoseSpec
from mi_audit.stats.verdict import Verdict
from tests.agreement.tiny_models import save_tiny
from tests.unit.experiments import (
    ALPHA,
    ASKED,
    CLOSE,
    DRAWS,
    FIT,
    KINDS,
    LAYER,
    NEUTRAL,
    READER,
    SHARP,
    STRENGTHS,
    ablate,
    adding,
    after,
    block,
    ids_of,
    laboratory,
    likelihood,
    made,
    opened,
    steer,
    token,
    vector,
)
from tests.unit.plain_steering import goes_on, heard, logits
from tests.unit.saes import save_sae

CORPUS = made("corpus", 30)
LATENTS = 600


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("models") / "sink")


@pytest.fixture(scope="module")
def sae(tmp_path_factory):
    return save_sae(tmp_path_factory.mktemp("sae"), 32, LATENTS, metadata={"hook_name": f"blocks.{LAYER}.hook_resid_post"})


def differences(model, tokens, modules, change):
    found = [after(model, each.text, tokens, modules, change)[0] for each in ASKED]
    return [float(each[token(model, "a")] - each[token(model, "b")]) for each in found]


@pytest.mark.parametrize("everywhere", [True, False])
def test_an_ablation_projects_the_direction_out(everywhere, model):
    found = laboratory(model).experiment(ablate(everywhere=everywhere, controls=True))
    way = torch.nn.functional.normalize(vector(model), dim=0)
    body = model.hf.model
    writers = [body.embed_tokens, *(part for each in body.layers for part in (each.self_attn, each.mlp))]

    def without(way):
        return differences(model, "all", writers if everywhere else block(model), lambda acts: acts - (acts @ way)[:, None] * way)

    np.testing.assert_allclose(found.values[0], without(way), **CLOSE)
    assert np.abs(found.values - found.unsteered).max() > 1e-3 and found.strengths == (1.0,) and found.direct is None
    for name, draws in found.handle.nulls.items():
        assert found.nulls[name].shape == (DRAWS, 1, len(ASKED))
        np.testing.assert_allclose(found.nulls[name][4, 0], without(torch.from_numpy(draws[4]).float()), **CLOSE)


class Plain:
    """A standard SAE by its formula."""

    def __init__(self, folder):
        self.w = load_file(next(folder.glob("*.safetensors")))

    def latents(self, acts):
        return ((acts - self.w["b_dec"]) @ self.w["W_enc"] + self.w["b_enc"]).relu()

    def clamped(self, latents, values):
        return lambda acts: acts + (torch.tensor(values, dtype=torch.float32) - self.latents(acts)[:, latents]) @ self.w["W_dec"][latents]


def test_latents_are_clamped(sae, model):
    plain = Plain(sae)
    on_corpus = torch.cat([plain.latents(heard(model.hf, ids_of(model, each.text), LAYER)[1:]) for each in CORPUS])  # without the sink
    on_asked = torch.cat([plain.latents(heard(model.hf, ids_of(model, each.text), LAYER)[1:]) for each in ASKED])
    firing = [int(each) for each in ((on_corpus > 0).float().mean(dim=0) * (on_asked > 0).float().mean(dim=0)).argsort(descending=True)[:2]]
    group = mi.latent_group(mi.sae(sae), firing, name="group", found_on=CORPUS)
    highest = on_corpus[:, firing].amax(dim=0).numpy()
    lab = laboratory(model)

    found = lab.experiment(steer(group, strengths=(-1, 0, 2), tokens="all", controls=True))
    assert found.strengths == (-1.0, 0.0, 2.0) and not found.spec.origin and lab.corpus(found.spec) == "corpus"
    np.testing.assert_allclose(found.handle.highest, highest, rtol=1e-4)
    for row, strength in enumerate(found.strengths):
        np.testing.assert_allclose(found.values[row], differences(model, "all", block(model), plain.clamped(firing, strength * highest)), **CLOSE)
    ((name, draws),) = found.handle.nulls.items()
    assert name == "random latents that fire as often" and len(draws) == DRAWS and found.nulls[name].shape == (DRAWS, 3, len(ASKED))
    assert all(len(set(draw)) == 2 and not set(draw) & set(firing) for draw in draws)
    for draw in (0, DRAWS - 1):
        expected = differences(model, "all", block(model), plain.clamped(list(draws[draw]), 2 * highest))
        np.testing.assert_allclose(found.nulls[name][draw, 2], expected, **CLOSE)

    gone = lab.experiment(ablate(group))
    np.testing.assert_allclose(gone.values[0], found.values[1], rtol=1e-5)
    assert np.abs(gone.values - gone.unsteered).max() > 1e-3

    silent = [int(each) for each in (on_corpus > 0).any(dim=0).logical_not().nonzero()[:, 0]]
    never = mi.latent(mi.sae(sae), silent[0], name="never", found_on=CORPUS)
    with pytest.raises(DetectorError, match=f"latent {silent[0]} never fires on the corpus, so it has no highest value to be clamped to"):
        laboratory(model).experiment(steer(never, strengths=(1,)))
    np.testing.assert_array_equal(laboratory(model).experiment(ablate(never)).strengths, [0.0])


def test_latents_of_an_sae_that_does_not_stand_for_the_model_decide_nothing(sae, model):
    latent = mi.latent(mi.sae(sae), 3, name="latent", found_on=CORPUS)
    lab, spec = laboratory(model), ablate(latent, controls=True)
    for dose in (DoseSpec(spec, "change", 0.0), DoseSpec(spec, "change", 0.0, over_null=True), DoseSpec(spec, "kl", 0.0, neutral=NEUTRAL)):
        estimate = lab.estimate(dose)
        assert any("the floor is 0.5 (explained_variance)" in reason for reason in estimate.undecided), estimate.undecided
        assert (estimate <= 1e6).verdict is Verdict.INCONCLUSIVE


def test_latents_that_change_nothing_where_they_are_silenced_are_no_control(sae, model):
    latent = mi.latent(mi.sae(sae), 3, name="latent", found_on=CORPUS)
    made = laboratory(model).experiment(ablate(latent, controls=True))
    ((name, draws),) = made.nulls.items()
    own = made.values + 1.0
    moving = np.broadcast_to(made.unsteered + 0.01, draws.shape)
    idle = moving.copy()
    idle[:61] = made.unsteered + 1e-6
    assert len(draws) == 99
    assert replace(made, values=own, nulls={name: moving}).idle_nulls(ALPHA) == ()
    few = replace(made, values=own, nulls={name: idle})
    assert few.idle_nulls(ALPHA) == (f"61 of the 99 {name} that it is held against change nothing on these prompts, and of those that do it takes 39",)
    assert len(few.active(name)) == 38 and (few.active(name) == moving[61:]).all()
    idle[60] = moving[60]
    assert replace(made, values=own, nulls={name: idle}).idle_nulls(ALPHA) == ()


def repeated(ids):
    runs = [tuple(ids[start : start + 4]) for start in range(len(ids) - 3)]
    return sum(run in runs[:place] for place, run in enumerate(runs)) / len(runs) if runs else 0.0


def beside(model, quantity, prompt, tokens, change):
    """A side effect of one prompt, as a number of the model that is changed so."""
    ids = ids_of(model, prompt.text)
    if quantity == "repetition_change":
        touched = [15] if tokens == "generated" else range(1, 16)
        return repeated(goes_on(model.hf, ids[:16], 48, block(model), touched, change, on_generated=tokens != "prompt"))
    if quantity == "capability_change":
        own, other = (likelihood(model, prompt, name, tokens, block(model), change) for name in ("answer", "other"))
        return 0.5 + 0.5 * np.sign(own - other)
    ids = ids[:64]
    base = logits(model.hf, ids).double().log_softmax(dim=-1)[1:-1]  # at the sink, which is left alone, nothing changes
    found = logits(model.hf, ids, block(model), range(1, len(ids)), change).double().log_softmax(dim=-1)[1:-1]
    if quantity == "kl":
        return float((base.exp() * (base - found)).sum(dim=-1).mean())
    return float(-found[torch.arange(len(ids) - 2), list(ids[2:])].mean())


def test_a_direction_is_gone_at_the_last_layer_where_positions_are_embedded_too(tmp_path):
    gpt2 = load(str(save_tiny(tmp_path / "gpt2", "gpt2")), device="cpu", progress=False)
    lab, spec = laboratory(gpt2), ablate(READER, everywhere=True, effect=KINDS["probability"])
    handle = lab.experiment(spec).handle
    unit = torch.tensor(handle.own, dtype=torch.float32)
    rows = Projections(_writers(gpt2), handle.own[None], (1.0,))
    ids = ids_of(gpt2, ASKED.prompts[0].text)
    last = At("resid_post", layer=gpt2.n_layers - 1)
    read = Read((len(ids) - 1,), lambda found, base: (found @ unit).abs().amax(dim=1, keepdim=True), last)
    base, found = read_variants(gpt2, ids, tuple(range(len(ids))), rows.places, 1, rows.interventions, read)
    assert found.item() < 1e-6 < base.item()


def test_the_score_at_the_place_that_is_changed_is_no_effect(model):
    here = mi.probe("here", method="mass_mean", at=mi.at("resid_post", layer=LAYER), fit=FIT)
    with pytest.raises(DetectorError, match=r"the score is read at resid_post at layer 1, where the model is changed"):
        laboratory(model).experiment(steer(effect=mi.effects.detector_score(here)))


def test_an_end_of_text_that_the_tokenizer_adds_is_not_answered(tmp_path, model):
    from tokenizers import processors

    folder = save_tiny(tmp_path / "ends")
    plain = load(str(folder), device="cpu", progress=False)
    tokenizer = plain.tokenizer
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in (begin, end)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ids)
    tokenizer.save_pretrained(folder)
    ending = load(str(folder), device="cpu", progress=False)
    (before,), (after,) = (asked(each, ASKED.prompts[:1], "generated", At("resid_post", layer=1), None) for each in (plain, ending))
    assert ids_of(ending, ASKED.prompts[0].text)[-1] == ids[1][1] and after.ids[-1] != ids[1][1]
    assert (after.ids, after.touched) == (ids_of(ending, ASKED.prompts[0].text)[:-1], (len(after.ids) - 1,)) and before.ids[-1] == after.ids[-1]


@pytest.mark.parametrize("tokens", ["generated", "prompt"])
@pytest.mark.parametrize("quantity", ["kl", "loss_change", "repetition_change", "capability_change"])
def test_side_effects_equal_plain_hooks(quantity, tokens, model):
    lab, spec, v = laboratory(model), steer(tokens=tokens), vector(model)
    ones = NEUTRAL.prompts[::2]  # one prompt of each group
    assert max(len(ids_of(model, each.text)) for each in ones) > 64
    for strength in STRENGTHS:
        estimate = lab.estimate(DoseSpec(spec, quantity, strength, neutral=NEUTRAL))
        expected = [beside(model, quantity, each, tokens, adding(v, strength)) - beside(model, quantity, each, tokens, None) for each in ones]
        assert estimate.n == estimate.groups == len(ones) and estimate.quantity == quantity
        assert estimate.value == pytest.approx(np.mean(expected), rel=1e-3, abs=1e-6)
    ((of, suite, base, changes),) = lab.side_values(spec)
    assert (of, [each.id for each in suite]) == (quantity, [each.id for each in ones])
    plain_base = [0.0 if quantity == "kl" else beside(model, quantity, each, tokens, None) for each in ones]
    np.testing.assert_allclose(base, plain_base, **CLOSE)
    np.testing.assert_allclose(changes[1], expected, rtol=1e-3, atol=1e-6)
    assert np.abs(changes).max() > 1e-3 or quantity == "capability_change"
    assert [(each, own.name, sorted(found)) for each, own, found in lab.side_effects(spec)] == [(quantity, suite.name, list(STRENGTHS))]


def test_experiments_that_do_the_same_to_the_model_share_their_side_effects_and_no_others_do(model, monkeypatch):
    from mi_audit.causal.making import Maker

    measured, beside = [], Maker.beside
    monkeypatch.setattr(Maker, "beside", lambda self, made, *rest: measured.append(made.spec) or beside(self, made, *rest))
    lab, first = laboratory(model), steer()
    alike = steer(effect=KINDS["probability"], on=ASKED.head(4))
    others = [steer(strengths=(-1.0, 1.5)), steer(unit="sd"), steer(tokens="all"), steer(SHARP), ablate(everywhere=False, tokens="generated")]
    for spec in (first, alike, *others):
        assert lab.estimate(DoseSpec(spec, "kl", spec.strengths[-1], neutral=NEUTRAL)).n == 3
    assert measured == [first, *others]
    ((_, _, base, changes),), ((_, _, own_base, own_changes),) = lab.side_values(alike), lab.side_values(first)
    assert (base == own_base).all() and (changes == own_changes).all()


def test_experiments_that_differ_in_their_effect_share_their_passes(model, monkeypatch):
    from mi_audit.causal import arms

    passes, read_variants = [], arms.read_variants
    monkeypatch.setattr(arms, "read_variants", lambda *given: passes.append(given[4]) or read_variants(*given))
    _, *others = alike = [steer(effect=KINDS[name], controls=True) for name in ("logit_difference", "probability", "log_odds")]
    apart = [steer(effect=KINDS["log_odds"], on=ASKED.head(4), controls=True), *(steer(effect=KINDS[name], controls=True) for name in ("function", "choice"))]
    alone = {spec: laboratory(model).experiment(spec) for spec in (*alike, *apart)}
    passes.clear()
    lab = laboratory(model)
    lab.expect([*alike, *apart])
    for spec in (*alike, *apart):
        before = len(passes)
        made = lab.experiment(spec)
        assert (len(passes) == before) == (spec in others)
        assert (made.unsteered == alone[spec].unsteered).all() and (made.values == alone[spec].values).all() and (made.direct == alone[spec].direct).all()
        assert all((draws == alone[spec].nulls[name]).all() for name, draws in made.nulls.items())
