"""Packed rows and shared beginnings against each prompt alone, by the plain road: transformers' own hidden states."""

import gc
import json
import weakref
from functools import partial

import numpy as np
import pytest
import torch

from mi_audit.engine.batches import plan_batches
from mi_audit.engine.capture import Site, capture
from mi_audit.engine.forward import Beginning
from mi_audit.engine.tokens import encode
from mi_audit.errors import PromptError
from mi_audit.model import packing, packing_check
from mi_audit.model.load import load
from mi_audit.model.packed_mask import packed_mask
from mi_audit.model.packing import Packing
from mi_audit.plan.places import At, Tokens
from mi_audit.suites.prompt import Prompt
from tests.agreement.tiny_models import LAYERS, save_tiny
from tests.unit.texts import texts

LAST, ALL = Tokens("last"), Tokens("all")
BEGIN = "you are a helpful one. "


def widened(folder, architecture, reach=64):
    """A small model whose local attention, if it has any, reaches over the prompts."""
    save_tiny(folder, architecture)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    if config.get("sliding_window"):
        file.write_text(json.dumps(config | {"sliding_window": reach}))
    return load(str(folder), progress=False)


def worst(model, prompts):
    """The largest relative difference to each prompt alone, over all layers, of its last token and of the mean of all but the first."""
    sites = {(layer, tokens): Site(At("resid_pre", layer=layer), tokens) for layer in range(1, LAYERS) for tokens in (LAST, ALL)}
    captures = capture(model, prompts, sites.values())
    found = 0.0
    for number, prompt in enumerate(prompts):
        states = model.hf(**model.tokenizer(prompt.text, return_tensors="pt"), output_hidden_states=True).hidden_states
        for (layer, tokens), site in sites.items():
            assert captures.excluded(site).sum() == 0
            alone = states[layer][0, -1] if tokens is LAST else states[layer][0, 1:].mean(dim=0)
            vector = torch.from_numpy(captures.vectors(site)[number])
            found = max(found, float((vector - alone).norm() / alone.norm()))
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gemma2", "gemma3", "olmo2", "gpt2", "gpt_neox"])
def test_packed_is_what_the_model_computes_alone(tmp_path, architecture):
    model = widened(tmp_path, architecture)
    assert model.packing.longest >= 64 and model.packing.shared_prefix, str(model.packing)
    short = partial(texts, shortest=1, longest=29)
    for prompts in (short(40), short(40, begin=BEGIN), short(20, begin=BEGIN) + short(20)):
        batches = plan_batches([encode(model.tokenizer, prompt).ids for prompt in prompts], model.packing)
        assert any(len(row) > 1 for batch in batches for row in batch.rows)
        assert worst(model, prompts) <= 5e-5


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3"])
def test_prompts_beyond_the_reach_of_local_attention_are_padded(tmp_path, architecture):
    model = widened(tmp_path, architecture, reach=24)
    prompts = texts(30)
    batches = plan_batches([encode(model.tokenizer, prompt).ids for prompt in prompts], model.packing)
    assert {batch.packed for batch in batches} == {True, False}
    assert worst(model, prompts) <= 5e-5


def test_an_architecture_that_does_not_heed_positions_is_padded_with_a_reason(tmp_path):
    model = widened(tmp_path, "bloom")
    assert model.packing.longest == 0
    assert "off by" in model.packing.reason or "refuses" in model.packing.reason
    assert worst(model, texts(12, begin=BEGIN)) <= 5e-5


def test_a_number_that_is_none_is_the_fault_of_its_own_prompt(tmp_path):
    model = widened(tmp_path, "llama")
    model.base.get_input_embeddings().weight[model.tokenizer.convert_tokens_to_ids("!")] = torch.nan
    prompts = [*texts(12, begin="a"), Prompt("bad", text="abcdefg!")]
    with pytest.raises(PromptError, match="'bad'"):
        capture(model, prompts, [Site(At("resid_post", layer=1), LAST)])


def test_memory_that_is_short_takes_less_at_a_time(tmp_path, cores):
    cores(1)
    model, site = widened(tmp_path, "llama"), Site(At("resid_post", layer=1), LAST)
    plain = capture(model, texts(30, begin=BEGIN), [site]).vectors(site)
    sizes = []

    def refuse(module, args):
        sizes.append(args[0].numel())
        if args[0].numel() > 300:
            raise torch.OutOfMemoryError

    model.base.get_input_embeddings().register_forward_pre_hook(refuse)
    halved = capture(model, texts(30, begin=BEGIN), [site]).vectors(site)
    np.testing.assert_allclose(halved, plain, rtol=1e-4, atol=1e-6)
    assert sum(size > 300 for size in sizes) <= 2


def test_a_batch_that_memory_is_too_short_for_halves_those_that_are_as_large_and_no_others(tmp_path, cores):
    """Sizes count tokens: the forty short prompts after it take half of them and pass whole. Each thread finds out for itself, so there is one."""
    cores(1)
    model, site = widened(tmp_path, "llama"), Site(At("resid_post", layer=1), LAST)
    object.__setattr__(model, "packing", Packing(reason="asked for"))
    sizes = []

    def refuse(module, args):
        sizes.append(tuple(args[0].shape))
        if args[0].numel() > 300:
            raise torch.OutOfMemoryError

    model.base.get_input_embeddings().register_forward_pre_hook(refuse)
    prompts = [Prompt(f"long{n}", text=f"{n:099d}") for n in range(8)] + [Prompt(f"short{n}", text=f"{n:04d}") for n in range(40)]
    capture(model, prompts, [site], budget=400)
    assert sizes == [(4, 100), *[(2, 100)] * 4, (40, 5)]


def test_a_shared_beginning_is_let_go_with_its_last_batch(tmp_path, monkeypatch, cores):
    """Two beginnings, more than a batch of each: in a thread each passes once, and never are the keys and values of both there."""
    cores(1)
    model, site = widened(tmp_path, "llama"), Site(At("resid_post", layer=1), LAST)
    begun, alive = [], []

    def noted(*given):
        gc.collect()
        alive.append(sum(each() is not None for each in begun))
        beginning = made(*given)
        begun.append(weakref.ref(beginning))
        return beginning

    made = Beginning.of
    monkeypatch.setattr(Beginning, "of", noted)
    capture(model, texts(30, begin=BEGIN) + texts(30, begin=BEGIN[::-1]), [site], budget=128)
    assert alive[:2] == [0, 0] and len(alive) <= 3


@pytest.mark.usefixtures("one_batch")
def test_rows_beyond_the_original_window_do_not_change_the_others(tmp_path):
    """LongRoPE takes other frequencies for the whole batch once its longest row is beyond the original window."""
    save_tiny(tmp_path, "llama")
    file = tmp_path / "config.json"
    rotary = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 32}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_parameters": rotary}))
    model = load(str(tmp_path), progress=False)
    prompts = texts(40, longest=100)
    assert model.packing.apart == (32,) and model.packing.longest <= 32 and not model.reentrant
    assert worst(model, prompts) <= 5e-5
    object.__setattr__(model, "packing", Packing(reason="asked for"))
    assert worst(model, prompts) > 1e-3
    object.__setattr__(model, "packing", Packing(reason="asked for", apart=(32,)))
    assert worst(model, prompts) <= 5e-5


@pytest.mark.parametrize(("architecture", "why"), [("mistral", "a token of a packed row is off by"), ("gemma3", "layers of the type sliding_attention")])
def test_local_attention_that_the_configuration_does_not_tell_is_found(tmp_path, monkeypatch, architecture, why):
    monkeypatch.setattr(packing, "_WINDOWS", ())
    model = widened(tmp_path, architecture, reach=96)
    assert (model.packing.longest, why in model.packing.reason) == (0, True), model.packing
    assert worst(model, texts(12, longest=150)) <= 5e-5


@pytest.mark.parametrize(("dtype", "attention"), [("bfloat16", -7.0), ("float16", -10.0)])
def test_rounding_does_not_hide_a_mask_that_is_not_quite_heeded(tmp_path, monkeypatch, dtype, attention):
    """Other prompts of the row get a thousandth of the attention or less: tokens are off by 0.13 and 0.008 of their norm."""
    save_tiny(tmp_path, "llama")
    assert load(str(tmp_path), dtype=dtype, progress=False).packing.longest

    def leaking(segments, shared, dtype):
        mask, earlier = packed_mask(segments, shared, dtype), packed_mask(torch.ones_like(segments), shared, dtype)
        return torch.where((mask < 0) & (earlier == 0), torch.tensor(attention, dtype=dtype), mask)

    monkeypatch.setattr(packing_check, "packed_mask", leaking)
    assert "a token of a packed row is off by" in load(str(tmp_path), dtype=dtype, progress=False).packing.reason
