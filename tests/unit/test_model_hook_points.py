import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from mi_audit.errors import HookPointError
from mi_audit.model.hook_map import NAMES
from mi_audit.model.hook_points import HookPoints
from mi_audit.model.self_check import self_check
from mi_audit.model.sinks import sink_mask, token_norms
from mi_audit.model.slots import OutputSlot
from tests.agreement.tiny_models import LAYERS, WIDTH, tiny, tiny_model, tiny_tokenizer

TOKENS = torch.tensor([[5, 9, 80, 33, 7, 101]])


def heard(points, name, layer=None, tokens=TOKENS):
    """What one forward pass passes at a hook point."""
    found = []
    handle = points.resolve(name, layer).listen(found.append)
    with torch.no_grad():
        points.decoder.base(input_ids=tokens, use_cache=False)
    handle.remove()
    return found


def test_errors_say_what_there_is():
    points = HookPoints.of(tiny_model("gpt_neox"))
    with pytest.raises(HookPointError, match=r"no hook point 'resid_last'.*resid_post at 0-3"):
        points.resolve("resid_last", 0)
    with pytest.raises(HookPointError, match="from 0 to 3, not 4"):
        points.resolve("resid_post", LAYERS)
    with pytest.raises(HookPointError, match="from 0 to 3, not None"):
        points.resolve("resid_post", None)
    with pytest.raises(HookPointError, match="parallel block"):
        points.resolve("resid_mid", 1)
    with pytest.raises(HookPointError, match="'embed' has no layer"):
        points.resolve("embed", 0)
    with pytest.raises(HookPointError, match="mixture of experts"):
        HookPoints.of(tiny_model("mixtral")).resolve("mlp.hook_post", 0)
    with pytest.raises(HookPointError, match="no norm stands before the feed-forward"):
        HookPoints.of(tiny_model("olmo2")).resolve("ln2.hook_normalized", 0)
    with pytest.raises(HookPointError, match="read what one norm gives"):
        HookPoints.of(tiny_model("falcon")).resolve("ln2.hook_normalized", 0)


def test_unresolvable_architecture_lists_what_was_found():
    hf = tiny_model("llama")
    hf.model.layers = torch.nn.ModuleList(hf.model.layers[:3])
    with pytest.raises(HookPointError, match="4 decoder blocks of LlamaModel; found: layers with 3 entries"):
        HookPoints.of(hf)


def test_widths_are_measured():
    points = HookPoints.of(tiny_model("qwen3"))
    assert {(name, width) for name, _, width in points.available()} == {
        ("embed", WIDTH),
        *((name, WIDTH) for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "ln2.hook_normalized", "mlp.hook_in")),
        ("attn.hook_z", 64),
        ("mlp.hook_post", 64),
    }


def test_gemma_embedding_is_scaled():
    hf = tiny_model("gemma2")
    [acts] = heard(HookPoints.of(hf), "embed")
    torch.testing.assert_close(acts, hf.model.embed_tokens.weight[TOKENS] * WIDTH**0.5)


def test_embedding_scaled_outside_its_module_is_found():
    hf = tiny_model("granite")
    [acts] = heard(HookPoints.of(hf), "embed")
    torch.testing.assert_close(acts, hf.model.embed_tokens.weight[TOKENS] * 12.0)


def test_taps_sort_as_a_forward_pass_meets_them():
    for architecture in ("llama", "gemma2"):
        points = HookPoints.of(tiny_model(architecture))
        fired = []
        handles = [tap.listen(lambda _, tap=tap, fired=fired: fired.append(tap)) for tap in reversed(points.taps)]
        points.decoder.base(input_ids=TOKENS, use_cache=False)
        for handle in handles:
            handle.remove()
        assert [tap.order for tap in fired] == sorted(tap.order for tap in points.taps)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama", "gemma2", "olmo2", "bloom"])
@pytest.mark.parametrize("name", NAMES[1:])
def test_what_is_written_is_what_the_stream_carries(architecture, name):
    points = HookPoints.of(tiny_model(architecture))
    layer = 1
    if (architecture, name) in (("gpt_neox", "resid_mid"), ("olmo2", "ln2.hook_normalized")):
        pytest.skip("absent there")
    [post] = heard(points, "resid_post", layer)
    tap = points.resolve(name, layer)
    with torch.no_grad():
        handle = tap.intervene(torch.zeros_like)
        [changed] = heard(points, "resid_post", layer)
        handle.remove()
    assert changed.shape == post.shape
    assert not torch.equal(changed, post)
    if name == "resid_post":
        assert not changed.any()
        [next_input] = heard(points, "resid_pre", layer + 1)
        assert next_input.any()
    assert torch.equal(heard(points, "resid_post", layer)[0], post)


def test_writing_attention_output_moves_the_stream_by_as_much():
    points = HookPoints.of(tiny_model("gemma2"))
    [mid] = heard(points, "resid_mid", 2)
    handle = points.resolve("attn_out", 2).intervene(lambda acts: acts + 3.0)
    [moved] = heard(points, "resid_mid", 2)
    handle.remove()
    torch.testing.assert_close(moved, mid + 3.0)


def test_what_listens_changes_nothing():
    points = HookPoints.of(tiny_model("llama"))
    handle = points.resolve("resid_post", 1).listen(lambda acts: acts + 1)
    with pytest.raises(HookPointError, match=r"it returned Tensor; use Tap.intervene"):
        points.decoder.base(input_ids=TOKENS, use_cache=False)
    handle.remove()


@pytest.mark.parametrize("name", ["attn_out", "mlp_out"])
def test_the_middle_of_a_stream_that_does_not_add_up_is_not_changed(name):
    points = HookPoints.of(tiny_model("llama")).without({(name, 1): "its self-check failed"})
    points.resolve("resid_mid", 2).intervene(torch.zeros_like).remove()
    with pytest.raises(HookPointError, match=r"resid_mid at layer 1 can be read but not changed: .* change resid_post"):
        points.resolve("resid_mid", 1).intervene(torch.zeros_like)
    assert len(heard(points, "resid_mid", 1)) == 1


@torch.no_grad()
def test_a_detour_is_never_seen_half_way():
    """Those who hook the block's output before the middle is changed have the whole change; a second change before the gain is made of the first."""
    hf = tiny_model("llama")
    points = HookPoints.of(hf)
    [mid], post = heard(points, "resid_mid", 1), []
    handles = [points.resolve("resid_post", 1).listen(post.append)]
    handles += [points.resolve("resid_mid", 1).intervene(change) for change in (lambda acts: acts * 2, lambda acts: acts + 1)]
    points.decoder.base(input_ids=TOKENS, use_cache=False)
    handles += [points.resolve("ln2.hook_normalized", 1).intervene(change) for change in (torch.zeros_like, lambda acts: acts + 1)]
    points.decoder.base(input_ids=TOKENS, use_cache=False)
    for handle in handles:
        handle.remove()
    block, new = hf.model.layers[1], mid * 2 + 1
    torch.testing.assert_close(post[0], new + block.mlp(block.post_attention_layernorm(new)))
    torch.testing.assert_close(post[1], new + block.mlp(block.post_attention_layernorm.weight.expand_as(new)))


def test_self_check_refuses_a_norm_whose_gain_was_left_in():
    hf, tokenizer = tiny("gemma2")
    points = HookPoints.of(hf)
    record, checked = self_check(with_tap(points, "ln2.hook_normalized", 2, through=deepcopy(hf.model.layers[2].pre_feedforward_layernorm)), tokenizer)
    assert {(name, layer) for name, layer, _ in record.refused} == {("ln2.hook_normalized", 2)} and self_check(points, tokenizer)[0].passed
    with pytest.raises(HookPointError, match=r"ln2.hook_normalized · gain \+ bias = mlp.hook_in is off by"):
        checked.resolve("ln2.hook_normalized", 2)


def test_an_output_of_another_form_is_an_error_and_not_a_batch_item():
    points = HookPoints.of(tiny_model("llama"))
    tap = replace(points.resolve("resid_post", 1), slot=OutputSlot(in_tuple=True))
    handle = tap.listen(lambda acts: None)
    with pytest.raises(HookPointError, match="not the form observed at load"):
        points.decoder.base(input_ids=TOKENS, use_cache=False)
    handle.remove()


def with_tap(points, name, layer, **changes):
    taps = {(tap.name, tap.layer): tap for tap in points.taps}
    taps[name, layer] = replace(taps[name, layer], **changes)
    return HookPoints(taps, {}, points.n_layers, points.decoder)


def test_self_check_refuses_a_contribution_before_its_post_norm():
    hf, tokenizer = tiny("gemma2")
    wrong = with_tap(HookPoints.of(hf), "attn_out", 2, module=hf.model.layers[2].self_attn, slot=OutputSlot(in_tuple=True))
    record, points = self_check(wrong, tokenizer)
    assert not record.passed
    with pytest.raises(HookPointError, match=r"attn_out at layer 2 can't be used.*its self-check failed"):
        points.resolve("attn_out", 2)
    assert {(name, layer) for name, layer, _ in record.refused} == {("attn_out", 2), ("mlp_out", 2), ("resid_mid", 2)}
    assert points.resolve("attn_out", 1)


def test_self_check_refuses_the_final_norm_as_the_last_block():
    hf, tokenizer = tiny("llama")
    record, points = self_check(with_tap(HookPoints.of(hf), "resid_post", LAYERS - 1, module=hf.model.norm), tokenizer)
    assert "the last block's output is not the final norm's" in [item.name for item in record.items if not item.passed]
    with pytest.raises(HookPointError, match="self-check failed"):
        points.resolve("resid_post", LAYERS - 1)


def test_self_check_refuses_what_depends_on_the_batch():
    hf, tokenizer = tiny("llama")
    points = HookPoints.of(hf)
    handle = hf.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output - output.mean(dim=0, keepdim=True) / 2)
    record, checked = self_check(points, tokenizer)
    handle.remove()
    failed = {(name, layer) for name, layer, _ in record.refused}
    assert ("mlp_out", 1) in failed
    assert ("resid_post", 3) in failed
    assert ("resid_post", 0) not in failed
    assert checked.resolve("resid_mid", 1)


def test_self_check_refuses_numbers_that_are_not_finite():
    hf, tokenizer = tiny("llama")
    hf.model.layers[3].mlp.down_proj.weight.data[0, 0] = float("nan")
    record, _ = self_check(HookPoints.of(hf), tokenizer)
    assert {("mlp_out", 3), ("resid_post", 3)} <= {(name, layer) for name, layer, _ in record.refused}
    assert json.loads(json.dumps(record.to_dict()))["refused"]


def test_a_residual_multiplier_is_noticed():
    record, _ = self_check(HookPoints.of(tiny_model("granite")), tiny_tokenizer())
    assert ("attn_out", 0) in {(name, layer) for name, layer, _ in record.refused}


def test_sinks_do_not_depend_on_the_batch():
    generator = torch.Generator().manual_seed(0)
    long, short = torch.randn(1, 9, 16, generator=generator), torch.randn(1, 4, 16, generator=generator)
    long[0, 0] *= 100
    short[0, 2] *= 30
    alone = [sink_mask(token_norms(acts), torch.ones(acts.shape[:2])) for acts in (long, short)]
    batch = torch.full((2, 9, 16), 1e6)
    batch[0], batch[1, :4] = long[0], short[0]
    together = sink_mask(token_norms(batch), torch.tensor([[1] * 9, [1] * 4 + [0] * 5]))
    assert alone[0][0].nonzero().flatten().tolist() == [0]
    assert alone[1][0].nonzero().flatten().tolist() == [2]
    assert torch.equal(together[0], alone[0][0])
    assert torch.equal(together[1, :4], alone[1][0])
    assert not together[1, 4:].any()
    assert not sink_mask(token_norms(long[:, :2]), torch.ones(1, 2)).any()


@pytest.mark.real_model
def test_the_sink_of_a_real_model_is_its_first_token(default_model):
    ids = default_model.tokenizer("Paris is the capital of France, and Berlin is the capital of Germany.", return_tensors="pt")["input_ids"]
    [acts] = heard(default_model.hook_points, "resid_post", 14, ids)
    assert sink_mask(token_norms(acts), torch.ones_like(ids))[0].nonzero().flatten().tolist() == [0]


@pytest.mark.parametrize("module", ["", ".identity", ".checks", ".catalogue", ".sources", ".shipped", ".checkpoint", ".hub", ".cache", ".opening", ".packing"])
def test_torch_free_modules(module):
    code = f"import sys, mi_audit.model{module}; assert not {{'torch', 'transformers', 'huggingface_hub'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
