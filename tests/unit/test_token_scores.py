"""Scores of single tokens are those of the reading where it read, whatever the detector and the selection."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mi_audit.detectors.bench import Bench
from mi_audit.detectors.token_scores import token_scores
from mi_audit.engine.tokens import encode
from mi_audit.errors import DetectorError
from mi_audit.model.load import load
from mi_audit.plan.detectors import direction, probe
from mi_audit.plan.measurements import ReadSpec
from mi_audit.plan.places import at, last_of
from mi_audit.suites.prompt import Message, Prompt
from mi_audit.suites.suite import suite
from tests.agreement.tiny_models import save_tiny

AT = at("resid_post", layer=2)
ROWS = [
    {"id": f"r{row}", "text": f"{row} {'#' * (row % 3)} says {'yes' if row % 2 else 'no'} {'.' * (row % 7)}", "label": bool(row % 2), "word": "says"}
    for row in range(24)
]
SUITE = suite(ROWS, name="answers")


@pytest.fixture
def model(tmp_path):
    """A llama whose "#" is an attention sink."""
    loaded = load(str(save_tiny(tmp_path)), progress=False)
    loaded.base.get_input_embeddings().weight[loaded.tokenizer.convert_tokens_to_ids("#")] *= 1000
    return loaded


def scored(model, detector, read=SUITE, top=5):
    bench = Bench(model, alpha=0.025, seed=0)
    reading = bench.read(ReadSpec(detector, read, controls=False))
    fitted = bench.detector(detector)
    return reading, fitted, token_scores(model, fitted, reading, top)


def fitted_on_others(tokens="last"):
    fit = suite([{**row, "id": f"f{row['id']}", "text": f"fit {row['text']}"} for row in ROWS], name="fit")
    return probe("answers", method="difference_of_means", at=AT, tokens=tokens, fit=fit)


@pytest.mark.parametrize("tokens", ["last", "all", last_of("word")])
def test_the_read_tokens_give_the_reading(model, tokens):
    reading, _, strips = scored(model, fitted_on_others(tokens))
    order = sorted(range(len(SUITE)), key=lambda row: (-reading.values[row], reading.ids[row]))
    assert [strip.prompt for strip in strips] == [reading.ids[row] for row in order[:5]]
    for row, strip in zip(order, strips, strict=False):
        assert strip.scores[strip.read].mean() == pytest.approx(reading.values[row], rel=1e-5, abs=1e-5)
        assert np.flatnonzero(strip.read)[-1] == reading.token_index[row]
        assert [strip.texts[place] for place in np.flatnonzero(strip.sinks)] == ["#"] * strip.texts.count("#")
        if tokens == "all":
            assert strip.read.tolist() == [text not in ("<s>", "#") for text in strip.texts]
        else:
            assert strip.read.sum() == 1


def test_scores_are_those_of_an_independent_forward(model, tmp_path):
    weight, centre = np.random.default_rng(0).normal(size=(2, model.d_model))
    save_file({"direction": weight, "centre": centre}, tmp_path / "found.safetensors")
    _, _, strips = scored(model, direction("found", tmp_path / "found.safetensors", at=AT))
    texts = dict(zip(SUITE.ids(), (prompt.text for prompt in SUITE), strict=True))
    for strip in strips:
        with torch.no_grad():
            plain = model.hf(**model.tokenizer(texts[strip.prompt], return_tensors="pt"), output_hidden_states=True).hidden_states[3][0].double().numpy()
        expected = (plain - centre) @ weight
        norms = np.linalg.norm(plain - centre, axis=1) * np.linalg.norm(weight)
        assert (np.abs(strip.scores - expected) / norms).max() <= 1e-5


def test_equal_scores_go_by_id_and_short_suites_whole(model):
    same = suite([{"id": name, "text": "the same"} for name in ("b", "c", "a")], name="same")
    _, _, strips = scored(model, fitted_on_others(), same)
    assert [strip.prompt for strip in strips] == ["a", "b", "c"]


def test_texts_joined_are_the_rendered_prompt(model):
    chat = Prompt("chat", messages=(Message("user", "  naïve 猫\n\tטוב 👩‍🚀 "),), response="So.")
    for prompt, added in ((chat, ()), (Prompt("text", text=" a 猫  b\n"), ("<s>",))):
        encoded = encode(model.tokenizer, prompt)
        texts = encoded.texts()
        assert texts[: len(added)] == added
        assert "".join(texts[len(added) :]) == encoded.text
        assert texts[texts.index("猫") :][1:3] == ("", "")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_score_that_is_not_finite_is_an_error_that_names_the_token(model, tmp_path):
    model.base.get_input_embeddings().weight[model.tokenizer.convert_tokens_to_ids("!")] = 1e30
    save_file({"direction": np.full(model.d_model, 1e280)}, tmp_path / "huge.safetensors")
    read = suite([{"id": "p", "text": "he says it!", "word": "says"}], name="loud")
    with pytest.raises(DetectorError, match="huge: its score of token 11 of prompt 'p' is not finite"):
        scored(model, direction("huge", tmp_path / "huge.safetensors", at=AT, tokens=last_of("word")), read)
