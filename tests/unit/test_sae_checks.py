"""An SAE that stands for the activations may testify; one that does not decides nothing, and the floor that it misses is named."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mi_audit as mi
from mi_audit.auditor import Auditor
from mi_audit.detectors.bench import Bench
from mi_audit.detectors.latents import RANDOM_LATENTS
from mi_audit.detectors.readings import NULL
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.capture import Site, capture
from mi_audit.engine.every_token import EveryToken
from mi_audit.engine.splicing import next_token_losses
from mi_audit.engine.streaming import streamed
from mi_audit.errors import DetectorError, MiAuditError
from mi_audit.plan.measurements import EstimateSpec, ReadSpec
from mi_audit.plan.places import Tokens
from mi_audit.plan.saes import CONFIG, WEIGHTS
from mi_audit.saes.measuring import reconstruction
from mi_audit.saes.quality import Recovery
from mi_audit.stats.auroc import auroc_value
from mi_audit.stats.claim import decide
from mi_audit.stats.verdict import Verdict
from mi_audit.suites.suite import suite
from tests.unit.saes import save_sae

HOOK = {"hook_name": "blocks.1.hook_resid_post"}
ANSWERS = suite(
    [{"text": f"{row * 7919 % 1000} {'yes' if row % 2 else 'no'}", "label": bool(row % 2), "group": f"g{row // 4}"} for row in range(120)], name="answers"
)


@pytest.fixture
def exact(tmp_path, tiny_llama):
    """An SAE that gives every activation back: a latent for what each number has above 0, and one for what it has below."""
    one, folder = torch.eye(tiny_llama.d_model), tmp_path / "exact"
    folder.mkdir()
    tensors = {"W_enc": torch.cat([one, -one], 1), "W_dec": torch.cat([one, -one]), "b_enc": torch.zeros(2 * len(one)), "b_dec": torch.zeros(len(one))}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    config = {"architecture": "standard", "d_in": len(one), "d_sae": 2 * len(one), "normalize_activations": "none", "metadata": HOOK}
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def telling(model, sae):
    """The latent of an exact SAE that tells the classes of the train split apart best."""
    train = ANSWERS["train"]
    acts = capture(model, train.prompts, [Site(sae.at, Tokens("last"))]).vectors(Site(sae.at, Tokens("last")))
    latents = np.maximum(np.concatenate([acts, -acts], axis=1), 0)
    return int(np.argmax([auroc_value(column, np.array(train.labels())) for column in latents.T.astype(np.float64)]))


def bench(model, **changed):
    return Bench(model, **{"alpha": 0.025, "seed": 0, **changed})


def test_a_latent_of_an_sae_that_stands_for_the_activations_decides(tiny_llama, exact):
    sae = mi.sae(exact)
    index, one = telling(tiny_llama, sae), bench(tiny_llama)
    reading = ReadSpec(mi.latent(sae, index, name="answer"), ANSWERS["test"])
    one.prepare([reading])
    estimate = one.estimate(EstimateSpec(reading, "auroc"))
    site = Site(sae.at, Tokens("last"))
    acts = capture(tiny_llama, ANSWERS["test"].prompts, [site]).vectors(site)
    expected = np.maximum(np.concatenate([acts, -acts], axis=1), 0)[:, index]
    np.testing.assert_allclose(one.read(reading).values, expected, rtol=1e-6)
    assert estimate.undecided == () and estimate.value > 0.9
    assert decide(estimate, ">=", 0.6).verdict is Verdict.PASS
    (random,) = one.read(reading).of_kind(NULL + RANDOM_LATENTS)
    assert random.values.shape == (99, len(ANSWERS["test"])) and not np.allclose(random.values, expected[None])
    quality = one.sae_quality(reading)
    assert quality.below == () and quality.explained_variance.value == pytest.approx(1, abs=1e-6) and quality.loss_recovered.value == pytest.approx(1, abs=1e-3)
    assert quality.norm_ratio.value == pytest.approx(1, abs=1e-6) and quality.kl.value == pytest.approx(0, abs=1e-6)
    assert quality.l0.value == pytest.approx(tiny_llama.d_model, rel=0.01)


def test_a_bad_sae_decides_nothing_and_its_floor_is_named(tiny_llama, exact, tmp_path):
    index = telling(tiny_llama, mi.sae(exact))
    tensors = load_file(exact / WEIGHTS)

    def verdict(folder, **options):
        sae = mi.sae(folder, **options)
        reading = ReadSpec(mi.latent(sae, index, name="answer"), ANSWERS["test"])
        return decide(bench(tiny_llama).estimate(EstimateSpec(reading, "auroc")), ">=", 0.6)

    assert verdict(exact).verdict is Verdict.PASS
    for scale in (0.3, 3.0):  # as of one trained on scaled activations whose factor was not folded in
        unfolded = {**tensors, "W_dec": tensors["W_dec"] * scale}
        save_file(unfolded, exact / WEIGHTS)
        claim = verdict(exact)
        assert claim.verdict is Verdict.INCONCLUSIVE and "(explained_variance)" in claim.reasons[0]
    save_file(tensors, exact / WEIGHTS)
    (exact / CONFIG).write_text((exact / CONFIG).read_text().replace(json.dumps(HOOK), "{}"))
    random = save_sae(tmp_path / "random", tiny_llama.d_model, 2 * tiny_llama.d_model)
    claim = verdict(random, at=mi.at("resid_post", layer=1))
    assert claim.verdict is Verdict.INCONCLUSIVE and "(explained_variance)" in claim.reasons[0] and "(loss_recovered)" in claim.reasons[1]
    assert verdict(random, at=mi.at("resid_post", layer=1), floors=mi.sae_floors(explained_variance=0, loss_recovered=0)).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metadata": {**HOOK, "model_name": "gpt2-small"}}, "model_name: it was trained on 'gpt2-small', the model under audit is"),
        ({"metadata": {"hook_name": "blocks.7.hook_resid_post"}}, "layer 7"),
    ],
)
def test_metadata_that_name_another_model_are_refused(tiny_llama, exact, fields, message):
    config = json.loads((exact / CONFIG).read_text())
    (exact / CONFIG).write_text(json.dumps({**config, **fields}))
    with pytest.raises(MiAuditError, match=message):
        bench(tiny_llama).read(ReadSpec(mi.latent(mi.sae(exact), 0, name="answer"), ANSWERS["test"]))


def test_another_width_is_refused(tiny_llama, tmp_path):
    folder = save_sae(tmp_path / "wide", tiny_llama.d_model + 1, 80, metadata=HOOK)
    with pytest.raises(DetectorError, match=r"d_in: it encodes \d+ numbers, but resid_post at layer 1 of .* has \d+; it was trained on another model"):
        bench(tiny_llama).read(ReadSpec(mi.latent(mi.sae(folder), 0, name="answer"), ANSWERS["test"]))


@pytest.fixture
def exact_transcoder(tmp_path, tiny_llama):
    """One that gives every activation on: what leaves block 1 is what enters block 2."""
    one, folder = torch.eye(tiny_llama.d_model), tmp_path / "exact-transcoder"
    folder.mkdir()
    tensors = {"W_enc": torch.cat([one, -one], 1), "W_dec": torch.cat([one, -one]), "b_enc": torch.zeros(2 * len(one)), "b_dec": torch.zeros(len(one))}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    metadata = {**HOOK, "hook_name_out": "blocks.2.hook_resid_pre"}
    config = {"architecture": "transcoder", "d_in": len(one), "d_out": len(one), "d_sae": 2 * len(one), "metadata": metadata}
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def test_a_transcoder_testifies_of_what_it_reconstructs(tiny_llama, exact_transcoder):
    sae = mi.sae(exact_transcoder)
    one, reading = bench(tiny_llama), ReadSpec(mi.latent(sae, telling(tiny_llama, sae), name="answer"), ANSWERS["test"])
    assert decide(one.estimate(EstimateSpec(reading, "auroc")), ">=", 0.6).verdict is Verdict.PASS
    quality = one.sae_quality(reading)
    assert quality.explained_variance.value == pytest.approx(1, abs=1e-6) and quality.loss_recovered.value == pytest.approx(1, abs=1e-3)
    elsewhere = json.loads((exact_transcoder / CONFIG).read_text())
    elsewhere["metadata"]["hook_name_out"] = "blocks.2.hook_mlp_out"
    (exact_transcoder / CONFIG).write_text(json.dumps(elsewhere))
    claim = decide(bench(tiny_llama).estimate(EstimateSpec(replace(reading, detector=mi.latent(mi.sae(exact_transcoder), 0, name="a")), "auroc")), ">=", 0.6)
    assert claim.verdict is Verdict.INCONCLUSIVE and "(explained_variance)" in claim.reasons[0]


def test_a_skip_that_does_it_all_lends_its_latents_nothing(tiny_llama, exact_transcoder):
    """It reconstructs all there is and loses nothing; its latents, which tell the classes apart, have no part in that."""
    tensors, config = load_file(exact_transcoder / WEIGHTS), json.loads((exact_transcoder / CONFIG).read_text())
    tensors |= {"W_dec": torch.zeros_like(tensors["W_dec"]), "W_skip": torch.eye(tiny_llama.d_model)}
    save_file(tensors, exact_transcoder / WEIGHTS)
    (exact_transcoder / CONFIG).write_text(json.dumps(config | {"architecture": "skip_transcoder"}))
    sae = mi.sae(exact_transcoder)
    one, reading = bench(tiny_llama), ReadSpec(mi.latent(sae, telling(tiny_llama, sae), name="answer"), ANSWERS["test"])
    claim = decide(one.estimate(EstimateSpec(reading, "auroc")), ">=", 0.6)
    assert one.sae_quality(reading).explained_variance.value == pytest.approx(1, abs=1e-6)
    assert claim.verdict is Verdict.INCONCLUSIVE and "has latents that explain 0% of the variance that is left" in claim.reasons[0]


def test_nothing_is_recovered_where_nothing_is_lost():
    """Where the mean in its place costs the model nothing, a ratio of losses says nothing, however large it is."""
    n, tokens = 40, np.full(40, 64.0)
    plain = np.full(n, 2.0) * tokens + np.arange(n)
    recovery = Recovery(tokens, plain, sae=plain + 0.5 * tokens, mean=plain - 0.02 * tokens - 0.01 * np.arange(n), zero=plain + tokens, kl=tokens)
    groups = [str(number) for number in range(n)]
    assert recovery.recovered(groups, 0.025).value > 10 and recovery.recovered(groups, 0.025).low is None
    assert recovery.recovered(groups, 0.025, zero=True).low == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_mid", "blocks.1.ln2.hook_normalized"])
def test_an_sae_whose_place_is_written_by_a_detour_is_measured(tiny_llama, exact, hook):
    """One that gives every activation back costs the model nothing there, one that gives a part back costs it something."""
    config, tensors = json.loads((exact / CONFIG).read_text()), load_file(exact / WEIGHTS)
    (exact / CONFIG).write_text(json.dumps({**config, "metadata": {"hook_name": hook}}))

    def quality():
        reading = ReadSpec(mi.latent(mi.sae(exact), 0, name="answer"), ANSWERS["test"])
        one = bench(tiny_llama)
        one.read(reading)
        return one.sae_quality(reading)

    whole = quality()
    assert whole.loss_recovered.value == pytest.approx(1, abs=1e-3) and whole.kl.value == pytest.approx(0, abs=1e-6)
    save_file({**tensors, "W_dec": tensors["W_dec"] * 0.3}, exact / WEIGHTS)
    part = quality()
    assert part.loss_recovered.value != pytest.approx(1, abs=1e-2) and part.kl.value > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_out": 33}, r"d_out: it reconstructs 33 numbers, but resid_pre at layer 2 of .* has 32; it was trained on another model"),
        ({"metadata": HOOK}, r"do not say which hook point it reconstructs"),
        (
            {"metadata": {**HOOK, "hook_name_out": "blocks.0.hook_mlp_out"}},
            r"hook_name_out: a forward pass meets mlp_out at layer 0 before resid_post at layer 1",
        ),
    ],
)
def test_a_transcoder_that_can_not_be_measured_is_refused(tiny_llama, exact_transcoder, changes, message):
    config = json.loads((exact_transcoder / CONFIG).read_text())
    (exact_transcoder / CONFIG).write_text(json.dumps(config | changes))
    with pytest.raises(MiAuditError, match=message):
        bench(tiny_llama).read(ReadSpec(mi.latent(mi.sae(exact_transcoder), 0, name="answer"), ANSWERS["test"]))


def test_sinks_of_either_hook_point_are_left_out_of_what_a_transcoder_is_worth(tiny_llama, exact_transcoder):
    sae, rows = mi.sae(exact_transcoder), torch.randn(6, tiny_llama.d_model, generator=torch.Generator().manual_seed(0)).numpy()
    given, wanted = rows.copy(), rows.copy()
    given[1] *= 100
    wanted[4] *= -100
    flags = np.eye(6, dtype=np.bool_)
    found = reconstruction(sae, [EveryToken((1,) * 6, given, flags[1])] * 2, [EveryToken((1,) * 6, wanted, flags[4])] * 2)
    assert found.tokens.tolist() == [4, 4] and found.explained_variance(["a", "b"], 0.025).value == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("read", [mi.at("embed"), mi.at("mlp.hook_in", layer=0)])
def test_sinks_of_either_hook_point_keep_their_activation(tiny_llama, read):
    """The first token is made one at the embedding, and before the first norm of a feed-forward; at the hook point that is replaced it is not."""
    ids, at = (1, *range(40, 60)), mi.at("attn_out", layer=2)
    with torch.no_grad():
        tiny_llama.base.embed_tokens.weight[1] *= 10
    losses, _, _ = next_token_losses(tiny_llama, [ids], at, [lambda acts: torch.full_like(acts, 3.0)], given=read)

    def filled_from(first):
        def fill(acts):
            changed = acts.clone()
            changed[:, first:] = 3.0
            return changed

        handle = tiny_llama.hook_points.resolve(at.point, at.layer).intervene(fill)
        with torch.no_grad():
            logits = tiny_llama.hf(input_ids=torch.tensor([ids])).logits[0, :-1]
        handle.remove()
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))

    (acts,) = streamed(tiny_llama, [ids], at)
    assert not acts.sinks.any() and filled_from(0) != pytest.approx(filled_from(1), rel=1e-3)
    assert losses[1, 0] == pytest.approx(filled_from(1), rel=1e-5)


def test_latents_of_a_transcoder_are_found(tiny_folder, exact_transcoder, tmp_path, monkeypatch):
    monkeypatch.setenv("MI_AUDIT_CACHE", str(tmp_path / "cache"))
    found = mi.find_latents(mi.sae(exact_transcoder), ANSWERS, model=str(tiny_folder))
    assert found.latents and found.quality.below == ()


def test_what_is_found_is_what_a_detector_reads(tiny_folder, tiny_llama, exact, tmp_path, monkeypatch):
    """The held-out AUROC of a group is that of `mi.latent_group`, and none is offered where the highest of several tokens is read."""
    monkeypatch.setenv("MI_AUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mi_audit.detectors.latent_judging.grow", lambda *_: (5, 40, 12))
    sae = mi.sae(exact)
    found = {pooling: mi.find_latents(sae, ANSWERS, model=str(tiny_folder), tokens="all", pooling=pooling) for pooling in ("mean", "max")}
    group = found["mean"].group
    assert group is not None and found["max"].group is None
    detector = mi.latent_group(sae, group.latents, name="group", tokens="all", pooling="mean", found_on=ANSWERS["train"])
    values = bench(tiny_llama).read(ReadSpec(detector, ANSWERS["test"])).values
    assert auroc_value(values, np.array(ANSWERS["test"].labels())) == pytest.approx(group.auroc, abs=1e-9)


def test_what_was_checked_once_is_not_checked_again(tiny_llama, exact, tmp_path):
    cache = ActivationCache.of(tiny_llama, tmp_path / "cache")
    reading = ReadSpec(mi.latent_group(mi.sae(exact), [0, 3], name="two", tokens="all", combine="any"), ANSWERS["test"])
    first = bench(tiny_llama, cache=cache)
    first.prepare([reading])
    passes = []
    tiny_llama.base.register_forward_pre_hook(lambda *_: passes.append(True))
    again = bench(tiny_llama, cache=cache)
    again.prepare([reading])
    assert not passes and again.sae_quality(reading) == first.sae_quality(reading)
    np.testing.assert_array_equal(again.read(reading).values, first.read(reading).values)


def test_the_neutral_text_itself_can_be_read(tiny_llama, exact, monkeypatch):
    """Its prompts are measured whole, some of them, as those of any suite, beside the beginnings of all."""
    neutral = suite([{"text": f"{row * 7919 % 1000} words {row}", "group": f"g{row // 4}"} for row in range(160)], name="neutral_text")
    monkeypatch.setattr("mi_audit.detectors.sae_checks.suite", lambda name: neutral)
    reading = ReadSpec(mi.latent(mi.sae(exact), 0, name="answer"), neutral)
    one = bench(tiny_llama)
    one.prepare([reading])
    assert 0 <= one.estimate(EstimateSpec(reading, "rate")).value <= 1
    assert one.sae_quality(reading).prompts == 128


def test_what_latents_were_found_on_is_no_test(exact):
    found = mi.latent(mi.sae(exact), 0, name="answer", found_on=ANSWERS)
    with pytest.raises(MiAuditError, match="its latents were found on"):
        Auditor(lambda spec: None, lambda spec: ()).read(found, ANSWERS["test"])


def test_random_latents_that_never_fire_are_no_control(tiny_llama, exact):
    """A latent that tells the classes apart passes; with all others silent nothing controls it, and nothing is decided."""
    index = telling(tiny_llama, mi.sae(exact))
    tensors = load_file(exact / WEIGHTS)
    silent = torch.full_like(tensors["b_enc"], -1e6)
    silent[index] = tensors["b_enc"][index]
    save_file(tensors | {"b_enc": silent}, exact / WEIGHTS)
    floorless = mi.sae(exact, floors=mi.sae_floors(explained_variance=0, loss_recovered=0))
    estimate = bench(tiny_llama).estimate(EstimateSpec(ReadSpec(mi.latent(floorless, index, name="answer"), ANSWERS["test"]), "auroc"))
    assert any("say nothing on these prompts" in reason for reason in estimate.undecided)
    assert decide(estimate, ">=", 0.6).verdict is Verdict.INCONCLUSIVE
