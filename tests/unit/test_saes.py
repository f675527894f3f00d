"""An SAE's file is read as what it says it is, or refused by the field's name; its latents are read token by token on the way of a pass."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mi_audit as mi
from mi_audit.auditor import Auditor
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.capture import Site, capture
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.every_token import every_token
from mi_audit.engine.selection import select
from mi_audit.errors import DetectorError, PlanError
from mi_audit.plan.places import Tokens
from mi_audit.plan.saes import CONFIG, WEIGHTS
from mi_audit.sae_sources import sae
from mi_audit.saes.encoding import Encoder
from mi_audit.saes.latents import LatentGroups, pre_activation, weights_of
from tests.unit.saes import save_sae
from tests.unit.texts import texts

HOOK = {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"}


def changed(folder, **fields):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))
    return folder


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("combine", ["sum", "max", "any"])
@pytest.mark.parametrize(("architecture", "options"), [("standard", {}), ("jumprelu", {}), ("topk", {"k": 5}), ("matching_pursuit", {"max_iterations": 5})])
def test_latents_are_those_of_each_token_and_pooled_without_sinks(tiny_llama, tmp_path, architecture, options, combine, pooling):
    width = tiny_llama.hook_points.resolve("resid_post", 1).width
    spec = sae(save_sae(tmp_path / "sae", width, 40, architecture, metadata=HOOK, **options))
    groups = LatentGroups(spec, ((3, 17, 39), (0, 1, 3)), combine, pooling)
    prompts, tokens = texts(12), Tokens("all")
    cache = ActivationCache.of(tiny_llama, tmp_path / "cache")
    site, plain = Site(spec.at, tokens, groups), Site(spec.at, tokens)
    read = capture(tiny_llama, prompts, [site, plain], cache=cache)
    again = capture(tiny_llama, prompts, [site], cache=cache)
    np.testing.assert_array_equal(again.vectors(site), read.vectors(site))
    assert again.prompts_forwarded == 0 and read.vectors(plain).shape == (12, width)

    encode = Encoder.of(spec.config, weights_of(spec))
    expected = []
    encoded = list(encode_all(tiny_llama, prompts, None))
    for prompt, ids, each in zip(prompts, encoded, every_token(tiny_llama, encoded, spec.at), strict=True):
        chosen = [position for position in select(ids, tokens, prompt) if not each.sinks[position]]
        latents = encode(torch.tensor(each.activations[chosen]))
        of_group = [latents[:, list(group)] for group in groups.groups]
        values = {"sum": lambda part: part.sum(1), "max": lambda part: part.amax(1), "any": lambda part: (part > 0).any(1).float()}[combine]
        by_token = torch.stack([values(part) for part in of_group], dim=1)
        expected.append((by_token.amax(0) if pooling == "max" else by_token.mean(0)).numpy())
    np.testing.assert_allclose(read.vectors(site), np.stack(expected), rtol=2e-5, atol=2e-6)


def test_what_has_no_pre_activation_is_not_attributed(tmp_path):
    spec = sae(save_sae(tmp_path, 16, 40, "matching_pursuit", metadata=HOOK))
    number = pre_activation(LatentGroups(spec, ((3,),), "sum", "mean"), torch.device("cpu"))
    with pytest.raises(DetectorError, match=r"'matching_pursuit' have no pre-activation .* attribute a probe"):
        number(torch.ones(2, 16))
    suite = mi.suite([{"text": "a", "label": True}, {"text": "b", "label": False}], name="two")
    with pytest.raises(PlanError, match="'matching_pursuit' have no pre-activation; attribute a probe there"):
        Auditor(lambda spec: None, lambda spec: ()).read(mi.latent(spec, 3, name="three"), suite).attribute()


def test_gradients_go_through_weights_that_a_pass_read_first(tmp_path):
    spec = sae(save_sae(tmp_path, 16, 40, metadata=HOOK))
    groups, acts = LatentGroups(spec, ((3, 5),), "sum", "mean"), torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        groups.on(torch.device("cpu"))(acts)
    points = acts.clone().requires_grad_()
    pre_activation(groups, torch.device("cpu"))(points).sum().backward()
    torch.testing.assert_close(points.grad, weights_of(spec).W_enc[:, [3, 5]].sum(dim=1).expand(7, -1))


def test_an_sae_says_where_it_is_read(tmp_path):
    folder = save_sae(tmp_path, 16, 40, metadata=HOOK)
    assert sae(folder).at == mi.at("resid_post", layer=1) == sae(folder, at=mi.at("resid_post", layer=1)).at
    with pytest.raises(PlanError, match=r"declared at resid_post at layer 2, but its metadata \(hook_name\) say resid_post at layer 1"):
        sae(folder, at=mi.at("resid_post", layer=2))
    changed(folder, metadata={})
    with pytest.raises(PlanError, match=r"do not say which hook point it encodes; say it with at="):
        sae(folder)
    assert sae(folder, at=mi.at("resid_post", layer=2)).at == mi.at("resid_post", layer=2)
    changed(folder, metadata={"hook_name": "blocks.1.attn.hook_q"})
    with pytest.raises(PlanError, match=r"hook_name: 'blocks.1.attn.hook_q' is no hook point that can be read"):
        sae(folder)
    changed(folder, metadata=HOOK)
    with pytest.raises(PlanError, match=r"out=mlp_out at layer 1: it is no transcoder"):
        sae(folder, out=mi.at("mlp_out", layer=1))


def test_a_transcoder_says_what_it_reads_and_what_it_reconstructs(tmp_path):
    folder = save_sae(tmp_path, 16, 40, "transcoder", metadata={"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"})
    found, out = sae(folder), mi.at("mlp_out", layer=1)
    assert (found.at, found.reconstructs) == (mi.at("ln2.hook_normalized", layer=1), out) and sae(folder, out=out) == found
    with pytest.raises(PlanError, match=r"declared at mlp_out at layer 2, but its metadata \(hook_name_out\) say mlp_out at layer 1; leave out= out"):
        sae(folder, out=mi.at("mlp_out", layer=2))
    changed(folder, metadata={"hook_name": "blocks.1.hook_mlp_in"})
    with pytest.raises(PlanError, match=r"may mean resid_mid at layer 1 or mlp.hook_in at layer 1; say which with at="):
        sae(folder)
    silent = sae(folder, at=mi.at("resid_mid", layer=1))
    assert silent.at == mi.at("resid_mid", layer=1) and sae(folder, at=silent.at, out=out).reconstructs == out
    with pytest.raises(DetectorError, match=r"do not say which hook point it reconstructs \(hook_name_out\)"):
        _ = silent.reconstructs
    changed(folder, metadata={"hook_name": "blocks.1.hook_mlp_in", "hf_hook_name": "model.layers.1.pre_feedforward_layernorm.output"})
    assert sae(folder).at == mi.at("mlp.hook_in", layer=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"normalize_activations": "expected_average_only_in"}, "normalize_activations: .* fold the factor into the weights"),
        ({"normalize_activations": "covariance_whitening"}, "normalize_activations: .* fold it"),
        ({"architecture": "crosscoder"}, "architecture: 'crosscoder' can't be read"),
        ({"architecture": "topk", "k": 41}, "k: more than its 40 latents"),
        ({"d_sae": 41}, r"W_enc has the shape \[16, 40\], cfg.json says \[16, 41\]"),
        ({"architecture": "gated"}, "holds no tensor 'b_gate'"),
        ({"architecture": "matching_pursuit", "residual_threshold": -1}, "residual_threshold: -1 is no number from 0"),
        ({"architecture": "matching_pursuit", "max_iterations": 0}, "max_iterations: 0 is neither null nor a whole number from 1"),
        ({"architecture": "matching_pursuit", "stop_on_duplicate_support": None}, "stop_on_duplicate_support: None is neither true nor false"),
        ({"architecture": "matching_pursuit"}, "holds the tensor 'W_enc', which an SAE of the architecture 'matching_pursuit' does not have"),
        ({"architecture": "temporal", "n_heads": 3}, "bottleneck_factor: 64 × n_heads 3 does not divide d_sae 40"),
        ({"architecture": "temporal", "bottleneck_factor": 1, "sae_diff_type": "jump"}, "sae_diff_type: 'jump' is neither 'relu' nor 'topk'"),
        ({"architecture": "temporal", "bottleneck_factor": 1, "kval_topk": 41}, "kval_topk: more than its 40 latents"),
        ({"normalize_activations": "constant_scalar_rescale"}, "normalize_activations: 'constant_scalar_rescale' is not known"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input: 'yes' is neither true nor false"),
        ({"metadata": {**HOOK, "hook_head_index": 3}}, "hook_head_index: an SAE of a single attention head"),
    ],
)
def test_what_can_not_be_computed_is_refused_by_the_name_of_the_field(tmp_path, fields, message):
    folder = changed(save_sae(tmp_path, 16, 40, metadata=HOOK), **fields)
    with pytest.raises((PlanError, DetectorError), match=message):
        weights_of(sae(folder))


def test_weights_that_are_broken_or_changed_since_the_plan_are_refused(tmp_path):
    folder = save_sae(tmp_path, 16, 40, metadata=HOOK)
    planned = sae(folder)
    tensors = load_file(folder / WEIGHTS)
    tensors["b_enc"][3] = torch.nan
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(DetectorError, match="its files changed after the run was planned"):
        weights_of(planned)
    with pytest.raises(DetectorError, match="b_enc holds a number that is not finite"):
        weights_of(sae(folder))
    save_file({**tensors, "b_enc": torch.zeros(40), "scaling_factor": torch.ones(40)}, folder / WEIGHTS)
    with pytest.raises(DetectorError, match="holds the tensor 'scaling_factor'"):
        weights_of(sae(folder))
    (folder / WEIGHTS).write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(DetectorError, match="can't be read as safetensors"):
        weights_of(sae(folder))
