"""Activations of every token are those of the model alone, and a pass leaves nothing behind."""

import numpy as np
import pytest
import torch

from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.every_token import every_token
from mi_audit.engine.tokens import encode
from mi_audit.errors import HookPointError, PromptError
from mi_audit.model.load import load
from mi_audit.plan.places import At
from mi_audit.suites.prompt import Prompt
from tests.agreement.tiny_models import save_tiny

AT = At("resid_pre", layer=2)
TEXTS = ["a", "ab#cdef", "a longer text than the others, which fills the batch", "héé", "x" * 90]


@pytest.fixture(params=["llama", "gpt2", "gemma3"])
def model(tmp_path, request):
    """One whose "#" is an attention sink."""
    loaded = load(str(save_tiny(tmp_path, request.param)), progress=False)
    loaded.base.get_input_embeddings().weight[loaded.tokenizer.convert_tokens_to_ids("#")] *= 1000
    return loaded


def encoded(model):
    return [encode(model.tokenizer, Prompt(text[:9], text=text)) for text in TEXTS]


def test_every_token_is_what_transformers_computes_for_the_prompt_alone(model):
    together = every_token(model, encoded(model), AT)
    for text, one in zip(TEXTS, together, strict=True):
        inputs = model.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            plain = model.hf(**inputs, output_hidden_states=True).hidden_states[2][0].numpy()
        assert list(one.ids) == inputs["input_ids"][0].tolist()
        assert one.activations.dtype == np.float32
        worst = np.linalg.norm(one.activations - plain, axis=1) / np.linalg.norm(plain, axis=1)
        assert worst.max() <= 1e-5
        assert [inputs.tokens()[place] for place in np.flatnonzero(one.sinks)] == (["#"] if "#" in text else [])


def test_what_was_read_before_does_not_pass_again(model, tmp_path):
    passes = []
    counting = model.base.register_forward_pre_hook(lambda module, args: passes.append(1))
    cache = ActivationCache.of(model, tmp_path / "kept")
    first = every_token(model, encoded(model), AT, cache=cache)
    second = every_token(model, encoded(model), AT, cache=cache)
    counting.remove()
    assert len(passes) == len(TEXTS)
    for one, other in zip(first, second, strict=True):
        assert one.ids == other.ids
        np.testing.assert_array_equal(one.activations, other.activations)
        np.testing.assert_array_equal(one.sinks, other.sinks)


def test_no_listener_stays_and_the_deeper_blocks_do_not_run(model):
    ran = []
    watching = model.hook_points.resolve("resid_post", 2).listen(lambda acts: ran.append(acts))
    every_token(model, encoded(model), AT)
    watching.remove()
    assert not ran
    tap = model.hook_points.resolve(AT.point, AT.layer)
    assert not tap.module._forward_pre_hooks
    assert not tap.module._forward_hooks


def test_failures_are_named(model):
    with pytest.raises(HookPointError):
        every_token(model, encoded(model), At("resid_pre", layer=99))

    def full(module, args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    breaking = model.base.register_forward_pre_hook(full)
    with pytest.raises(PromptError, match="a prompt of 2 tokens does not fit into the memory of cpu"):
        every_token(model, encoded(model), AT)
    breaking.remove()
