import io

import numpy as np
import pytest
import torch
from rich.console import Console

from mi_audit.engine.capture import Site, capture
from mi_audit.engine.forward import read_alone
from mi_audit.engine.progress import TerminalProgress
from mi_audit.engine.streaming import streamed
from mi_audit.engine.tokens import encode
from mi_audit.errors import HookPointError, PromptError
from mi_audit.model.load import load
from mi_audit.plan.places import At, Tokens, last_of, span
from mi_audit.suites.prompt import Message, Prompt
from tests.agreement.tiny_models import LAYERS, WIDTH, save_tiny
from tests.unit.texts import texts

LAST, ALL = Tokens("last"), Tokens("all")
TOP = Site(At("resid_post", layer=LAYERS - 1), LAST)


pytestmark = pytest.mark.usefixtures("one_batch")


def tiny(folder, architecture="llama"):
    return load(str(save_tiny(folder, architecture)), progress=False)


@pytest.fixture
def model(tmp_path):
    """A llama whose "#" is an attention sink (as long as a hundred others) and whose "!" is not a number."""
    loaded = tiny(tmp_path)
    embedding = loaded.base.get_input_embeddings().weight
    embedding[loaded.tokenizer.convert_tokens_to_ids("#")] *= 1000
    embedding[loaded.tokenizer.convert_tokens_to_ids("!")] = torch.nan
    return loaded


def hidden(model, prompt):
    """resid_pre of every layer by the plain road, one prompt alone: [layer, position, width]."""
    output = model.hf(**model.tokenizer(prompt.text, return_tensors="pt"), output_hidden_states=True)
    return torch.stack(output.hidden_states[:-1])[:, 0].numpy()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen3", "mistral", "gemma2", "gemma3", "olmo2"])
def test_numbers_do_not_move_with_the_batch(tmp_path, architecture):
    model, prompts = tiny(tmp_path, architecture), texts(24, shortest=1)
    sites = [Site(At(tap.name, layer=tap.layer), tokens) for tap in model.hook_points.taps for tokens in (LAST, ALL)]
    together, alone = capture(model, prompts, sites, budget=100_000), capture(model, prompts, sites, budget=1)
    for site in sites:
        one, other = together.vectors(site), alone.vectors(site)
        assert (np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)).max() <= 1e-5, site
        assert one.dtype == np.float32
        np.testing.assert_array_equal(together.token_index(site), alone.token_index(site))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma3"])
def test_captures_are_what_the_model_computes_alone(tmp_path, architecture):
    model, prompts = tiny(tmp_path, architecture), texts(12, shortest=1)
    layers = range(1, model.n_layers)
    captures = capture(model, prompts, [Site(At("resid_pre", layer=layer), tokens) for layer in layers for tokens in (LAST, span(1, 2))])
    for number, prompt in enumerate(prompts):
        plain = hidden(model, prompt)
        for layer in layers:
            np.testing.assert_allclose(captures.vectors(Site(At("resid_pre", layer=layer), LAST))[number], plain[layer, -1], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(captures.vectors(Site(At("resid_pre", layer=layer), span(1, 2)))[number], plain[layer, 2], rtol=1e-4, atol=1e-5)
        assert captures.n_tokens[number] == plain.shape[1]


def test_a_mean_leaves_the_sinks_out_and_says_how_many(model):
    prompts = [Prompt("plain", text="abcdef"), Prompt("sinks", text="ab#cd#"), Prompt("other", text="a#b" * 9)]
    site = Site(At("resid_pre", layer=2), ALL)
    captures = capture(model, prompts, [site])
    assert captures.excluded(site).tolist() == [0, 2, 9]
    assert captures.token_index(site).tolist() == [6, 5, 27]
    for vector, prompt in zip(captures.vectors(site), prompts, strict=True):
        kept = [position + 1 for position, letter in enumerate(prompt.text) if letter != "#"]
        np.testing.assert_allclose(vector, hidden(model, prompt)[2][kept].mean(axis=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox", "olmo2"])
def test_after_a_norm_the_sinks_are_those_before_it(tmp_path, architecture):
    """All tokens are as long there; which are sinks is seen in the residual stream that the norm reads."""
    loaded = tiny(tmp_path, architecture)
    loaded.base.get_input_embeddings().weight[loaded.tokenizer.convert_tokens_to_ids("#")] *= 1000
    prompts = [Prompt(f"{number}", text="you are# a helpful one. " + text.text + "#") for number, text in enumerate(texts(8))]
    before = At("resid_pre" if architecture == "gpt_neox" else "resid_mid", layer=1)
    after = [At(tap.name, layer=1) for tap in loaded.hook_points.taps if tap.layer == 1 and tap.name in ("ln2.hook_normalized", "mlp.hook_in")]
    assert len(after) == (1 if architecture == "olmo2" else 2)
    read = capture(loaded, prompts, [Site(at, ALL) for at in (before, *after)])
    assert (read.excluded(Site(before, ALL)) == 2).all()
    ids = [encode(loaded.tokenizer, prompt).ids for prompt in prompts]
    for at in after:
        np.testing.assert_array_equal(read.excluded(Site(at, ALL)), read.excluded(Site(before, ALL)))
        alone = capture(loaded, prompts, [Site(at, ALL)], budget=1)
        np.testing.assert_allclose(read.vectors(Site(at, ALL)), alone.vectors(Site(at, ALL)), rtol=1e-3, atol=1e-4)
        for row, (streaming, expected) in enumerate(zip(streamed(loaded, ids, at), streamed(loaded, ids, before), strict=True)):
            np.testing.assert_array_equal(streaming.sinks, expected.sinks)
            acts, sinks = read_alone(loaded, ids[row], at)
            np.testing.assert_array_equal(sinks, expected.sinks)
            np.testing.assert_allclose(acts, streaming.activations, rtol=1e-3, atol=1e-4)


def test_a_sink_that_alone_is_selected_is_read(model):
    site, prompt = Site(At("resid_pre", layer=2), LAST), Prompt("p", text="abcd#")
    captures = capture(model, [prompt], [site])
    np.testing.assert_allclose(captures.vectors(site)[0], hidden(model, prompt)[2][-1], rtol=1e-4)
    assert captures.excluded(site).tolist() == [0]


def test_nothing_but_sinks_is_refused(model):
    prompts = [Prompt("fine", text="abcdefgh"), Prompt("sinks", text="ab##efgh")]
    with pytest.raises(PromptError, match="'sinks': at resid_pre at layer 2, characters 2 to 4, all selected tokens are attention sinks"):
        capture(model, prompts, [Site(At("resid_pre", layer=2), span(2, 4))])


def test_a_number_that_is_none_is_an_error_that_names_its_prompt_and_site(model):
    prompts = [*texts(5), Prompt("bad", text="abcdefghi!")]
    with pytest.raises(PromptError, match="'bad': at resid_post at layer 1, last token, the activation is not finite"):
        capture(model, prompts, [Site(At("resid_post", layer=1), LAST)])
    elsewhere = Site(At("embed"), span(0, 2))
    assert np.isfinite(capture(model, prompts, [elsewhere]).vectors(elsewhere)).all()


def test_one_pass_serves_all_sites_and_goes_no_deeper_than_they_are(model):
    calls = []
    watched = {"base": model.base, "head": model.hf.lm_head} | dict(enumerate(model.base.layers))
    for name, module in watched.items():
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    capture(model, texts(6), [Site(At(point, layer=layer), tokens) for point in ("resid_pre", "attn_out") for layer in (0, 1) for tokens in (LAST, ALL)])
    assert calls == ["base", 0, 1]


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules())


def test_no_hook_outlives_a_capture_or_its_failure(model):
    before = hooks(model)
    capture(model, texts(3), [TOP])
    with pytest.raises(PromptError):
        capture(model, [Prompt("bad", text="ab!")], [TOP])
    with pytest.raises(RuntimeError, match="interrupted"):
        capture(model, texts(3), [TOP], progress=Interrupting())
    assert hooks(model) == before
    assert torch.isfinite(model.hf(**model.tokenizer("abc", return_tensors="pt")).logits).all()


class Interrupting:
    def start(self, prompts, tokens):
        self.closed = False

    def advance(self, prompts, tokens):
        raise RuntimeError("interrupted")

    def close(self):
        self.closed = True


def test_progress_is_closed_when_a_batch_fails(model):
    progress = Interrupting()
    with pytest.raises(RuntimeError):
        capture(model, texts(3), [TOP], progress=progress)
    assert progress.closed


def test_equal_prompts_pass_once_unless_they_are_read_elsewhere(model):
    prompts = [
        Prompt("one", text="ab cd", fields=(("word", "ab"),)),
        Prompt("two", text="ab cd", fields=(("word", "ab"),)),
        Prompt("three", text="ab cd", fields=(("word", "cd"),)),
    ]
    last, word = Site(TOP.at, LAST), Site(TOP.at, last_of("word"))
    assert capture(model, prompts, [last]).prompts_forwarded == 1
    captures = capture(model, prompts, [last, word])
    assert captures.prompts_forwarded == 2 and captures.tokens_forwarded == 12
    assert captures.token_index(word).tolist() == [2, 2, 5]
    np.testing.assert_allclose(captures.vectors(word)[2], captures.vectors(last)[0], rtol=1e-5, atol=1e-6)
    assert captures.vectors(last).shape == (3, WIDTH)


def test_what_the_model_lacks_or_cannot_take_is_refused_before_any_pass(tmp_path):
    model = tiny(tmp_path, "gpt_neox")
    with pytest.raises(HookPointError, match="parallel block"):
        capture(model, texts(2), [Site(At("resid_mid", layer=1), LAST)])
    with pytest.raises(PromptError, match="'long' has 601 tokens, but the model takes at most 512"):
        capture(model, [Prompt("long", text="x" * 600)], [TOP])
    with pytest.raises(ValueError, match="absolute layer"):
        Site(At("resid_mid", depth=0.5), LAST)


def test_chats_are_read_where_the_answer_begins(model):
    chats = [Prompt(f"c{number}", messages=(Message("user", "ab" * number),), response=answer) for number in (1, 9) for answer in (None, "cd")]
    captures = capture(model, chats, [TOP])
    turns = len(model.tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True, tokenize=False).encode())
    assert turns > 0
    assert (captures.n_tokens - captures.token_index(TOP)).tolist() == [1, 3, 1, 3]


def test_the_terminal_shows_one_line_where_there_is_no_bar(model):
    out = io.StringIO()
    prompts = texts(7)
    capture(model, prompts, [TOP], progress=TerminalProgress("Reading greetings", Console(file=out, width=200)), budget=64)
    (line,) = out.getvalue().splitlines()
    tokens = sum(len(prompt.text) + 1 for prompt in prompts)
    assert line.startswith(f"Reading greetings: 7 prompts, {tokens} tokens in ") and line.endswith("tokens/s)")
