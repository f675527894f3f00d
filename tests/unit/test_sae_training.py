"""An SAE trained on a tiny model: what is killed goes on to the same SAE, sae-lens reads it, and what it is said to be worth is what it is worth."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from sae_lens import SAE

import mi_audit as mi
from mi_audit.detectors.sae_checks import SaeChecks
from mi_audit.engine.streaming import streamed
from mi_audit.errors import DetectorError, PlanError, PromptError
from mi_audit.model.load import load
from mi_audit.plan.places import At
from mi_audit.plan.recipe import Recipe
from mi_audit.plan.saes import CONFIG, WEIGHTS
from mi_audit.saes.corpus import HELD_OUT, STRETCH, cut
from mi_audit.saes.encoding import Encoder
from mi_audit.saes.held_out import by_components
from mi_audit.saes.latents import weights_of
from mi_audit.saes.making import CARD, make
from mi_audit.saes.spool import Spool
from tests.agreement.tiny_models import save_tiny

AT = At("resid_post", layer=1)
RECIPE = Recipe(width=96, k=8, samples=12_000, batch=256, learning_rate=3e-3)


class Silent:
    """Hears nothing, or kills after so many steps."""

    def __init__(self, steps=None):
        self.steps, self.heard = steps, []

    def passed(self, done, tokens):
        pass

    def step(self, done, steps, explained_variance, l0, dead):
        self.heard.append((done, explained_variance, l0))
        if self.steps is not None and done >= self.steps:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(str(tiny_folder), progress=False)


@pytest.fixture(scope="module")
def corpus(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    random = np.random.default_rng(0)
    path.write_text(" ".join(random.choice(["alpha", "beta", "gamma", "delta", "omega"], 6000)), encoding="utf-8")
    return cut(model.tokenizer, [path], [], context=32, tokens=12_000, seed=0)


@pytest.fixture(scope="module")
def made(model, corpus, tmp_path_factory):
    out, heard = tmp_path_factory.mktemp("made") / "sae", Silent()
    return out, make(model, AT, corpus, RECIPE, 32, out, heard), heard


def test_contexts_are_held_out_in_stretches(corpus):
    assert abs(corpus.tokens + sum(map(len, corpus.held_out)) - 12_000) <= 32
    assert 0.5 / HELD_OUT <= len(corpus.held_out) / (len(corpus.train) + len(corpus.held_out)) <= 2 / HELD_OUT
    assert not set(corpus.train) & set(corpus.held_out) and STRETCH > 1


def test_a_stream_gives_what_single_passes_give(model, corpus):
    from mi_audit.engine.forward import read_alone

    for each in streamed(model, corpus.held_out[:12], AT):
        acts, sinks = read_alone(model, each.ids, AT)
        np.testing.assert_allclose(each.activations, acts, atol=2e-5)
        assert (each.sinks == sinks).all()


def test_what_is_said_of_it_is_so(made, model, corpus):
    """sae-lens's own encoder and decoder, on the held-out contexts."""
    out, quality, heard = made
    sae = SAE.load_from_disk(out)
    kept = [each.activations[~each.sinks] for each in streamed(model, corpus.held_out, AT)]
    acts = torch.from_numpy(np.concatenate(kept))
    with torch.no_grad():
        latents = sae.encode(acts)
        residual = (acts - sae.decode(latents)).double()
    explained = 1 - (residual**2).sum() / ((acts.double() - acts.double().mean(dim=0)) ** 2).sum()
    assert quality.explained_variance == pytest.approx(float(explained), abs=1e-6)
    assert quality.l0 == pytest.approx(float((latents != 0).sum(dim=-1).double().mean()))
    assert quality.alive == pytest.approx(float((latents != 0).any(dim=0).double().mean()))
    assert heard.heard[-1][1] == pytest.approx(quality.explained_variance, abs=0.2) and heard.heard[-1][0] == RECIPE.steps
    metadata = json.loads((out / CONFIG).read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.hook_resid_post" and metadata["explained_variance"] == round(quality.explained_variance, 4)
    card = json.loads((out / CARD).read_text())
    assert card["made_of"]["model_root"] == model.identity.root and card["sources"][0]["sha256"] and card["held_out"]["tokens"] == quality.tokens
    assert mi.sae(out).at == AT and not list(out.parent.glob("*.work"))


def test_at_another_layer_and_on_another_model_of_the_same_width_it_misses_its_floor(made, model, tmp_path):
    """Its metadata stripped, nothing says where it belongs, but for what it explains."""
    folder = shutil.copytree(made[0], tmp_path / "stripped")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "metadata": {}}))
    random = np.random.default_rng(3)
    words = ["alpha", "beta", "gamma", "delta", "omega"]
    suite = mi.suite([{"text": " ".join(random.choice(words, 20)), "group": str(row)} for row in range(40)], name="words")
    other = load(str(save_tiny(tmp_path / "other", "qwen2")), progress=False)

    def missed(one, layer):
        quality = SaeChecks(one, 0.025, 0, None).quality(mi.sae(folder, at=mi.at("resid_post", layer=layer)), suite)
        return any("(explained_variance)" in reason for reason in quality.below)

    assert not missed(model, AT.layer)
    assert missed(model, 3) and missed(other, AT.layer)
    floorless = mi.sae_floors(explained_variance=0, loss_recovered=0)
    found = {
        layer: SaeChecks(model, 0.025, 0, None).quality(mi.sae(folder, at=mi.at("resid_post", layer=layer), floors=floorless), suite) for layer in range(4)
    }
    assert found[AT.layer].better_at is None
    for layer in (0, 2):
        assert found[layer].better_at == str(AT) and any(f"better at {AT} than at resid_post at layer {layer}" in reason for reason in found[layer].below)


def test_components_explain_what_scikit_learn_says():
    from sklearn.decomposition import PCA

    random = np.random.default_rng(0)
    mixing = random.normal(size=(20, 20))
    seen, unseen = (random.normal(size=(n, 20)).astype(np.float32) @ mixing.astype(np.float32) for n in (500, 200))
    fitted = PCA(4).fit(seen.astype(np.float64))
    back = fitted.inverse_transform(fitted.transform(unseen.astype(np.float64)))
    expected = 1 - ((unseen - back) ** 2).sum() / ((unseen - unseen.mean(axis=0)) ** 2).sum()
    assert by_components(seen, [unseen], 4) == pytest.approx(expected, rel=1e-6)


def test_a_killed_training_goes_on_to_the_same_sae(made, model, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("mi_audit.saes.training.EVERY", 0.0)
    out = tmp_path / "sae"
    with pytest.raises(KeyboardInterrupt):
        make(model, AT, corpus, RECIPE, 32, out, Silent(steps=20))
    assert not out.exists()
    again = Silent()
    make(model, AT, corpus, RECIPE, 32, out, again)
    assert again.heard[0][0] == 20, "it did not begin again"
    assert (out / WEIGHTS).read_bytes() == (made[0] / WEIGHTS).read_bytes()


def test_another_training_is_not_mixed_up(made, model, corpus, tmp_path):
    with pytest.raises(DetectorError, match="is there already"):
        make(model, AT, corpus, RECIPE, 32, made[0], Silent())
    work = tmp_path / "sae.work"
    work.mkdir()
    (work / "made_of.json").write_text("{}")
    with pytest.raises(DetectorError, match="activations of another model, place or text"):
        make(model, AT, corpus, RECIPE, 32, tmp_path / "sae", Silent())


def test_what_stands_in_the_way_is_named_and_nothing_is_lost(made, model, corpus, tmp_path):
    out, work = tmp_path / "sae", tmp_path / "sae.work"
    work.mkdir()
    with FileLock(work / "lock"), pytest.raises(DetectorError, match="another process trains in"):
        make(model, AT, corpus, RECIPE, 32, out, Silent())
    (tmp_path / "sae.new").write_text("a file where a folder is to be")
    with pytest.raises(DetectorError, match="sae can't be written"):
        make(model, AT, corpus, RECIPE, 32, out, Silent())
    (tmp_path / "sae.new").unlink()
    make(model, AT, corpus, RECIPE, 32, out, Silent())
    assert (out / WEIGHTS).read_bytes() == (made[0] / WEIGHTS).read_bytes() and not work.exists()


def test_a_spool_forgets_what_was_not_noted(tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    with Spool(tmp_path, 3) as spool:
        spool.append([rows[:2]], left_out=1)
        spool.flush()
        spool.append([rows[2:]], left_out=5)
    with Spool(tmp_path, 3) as spool:
        assert (spool.rows, spool.batches, spool.left_out) == (2, 1, 1)
        spool.append([rows[2:3], rows[3:]])
        assert (spool.read(np.array([3, 0])) == rows[[3, 0]]).all()
    with Spool(tmp_path, 3) as spool, pytest.raises(DetectorError, match="free"):
        spool.require_room(2**50)


def test_small_files_are_held_out_together(model, tmp_path):
    random = np.random.default_rng(1)
    paths = [tmp_path / f"{number}.txt" for number in range(60)]
    for path in paths:
        path.write_text(" ".join(random.choice(["alpha", "beta", "gamma", "delta"], 30)))
    found = cut(model.tokenizer, paths, [], context=32, tokens=None, seed=0)
    assert len(found.held_out) >= 8 and not set(found.train) & set(found.held_out)
    assert found.tokens + sum(map(len, found.held_out)) <= sum(source.tokens for source in found.sources)


def test_text_that_can_not_be_read_is_named(model, tmp_path):
    (tmp_path / "short.txt").write_text("few words")
    (tmp_path / "latin.txt").write_bytes("Überall".encode("latin-1"))
    for name, message in (
        ("short.txt", "could be held out, and 8 have to be"),
        ("latin.txt", "latin.txt is no UTF-8 text .byte 0"),
        ("none.txt", "none.txt can't be read"),
    ):
        with pytest.raises(PromptError, match=message):
            cut(model.tokenizer, [tmp_path / name], [], context=16, tokens=None, seed=0)
    with pytest.raises(PlanError, match="--k 200: there are 96 latents"):
        Recipe(width=96, k=200)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk", "standard", "gated", "jumprelu"])
def test_every_architecture_is_trained_and_read_again(architecture, model, corpus, tmp_path):
    recipe = Recipe(architecture, width=64, k=8, sparsity=0.1, samples=2_000, batch=128)
    make(model, AT, corpus, recipe, 32, tmp_path / "sae", Silent())
    read, theirs = mi.sae(tmp_path / "sae"), SAE.load_from_disk(tmp_path / "sae")
    assert read.config.architecture == theirs.cfg.architecture() and Path(read.folder) == tmp_path / "sae"
    acts = torch.from_numpy(np.concatenate([each.activations for each in streamed(model, corpus.held_out[:8], AT)]))
    with torch.no_grad():
        expected = theirs.encode(acts)
    assert (expected != 0).any()
    torch.testing.assert_close(Encoder.of(read.config, weights_of(read))(acts), expected, rtol=1e-5, atol=1e-5)
