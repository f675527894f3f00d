"""Integrated gradients add up, and are what Captum finds."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

import mi_audit as mi
from mi_audit.detectors.bench import Bench
from mi_audit.engine.attribution import integrated_gradients
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.every_token import every_token
from mi_audit.plan.measurements import AttributionSpec, ReadSpec
from mi_audit.plan.places import At
from mi_audit.saes.encoding import Encoder
from mi_audit.saes.latents import weights_of
from tests.unit.saes import save_sae
from tests.unit.texts import texts

AT = At("resid_post", layer=1)
IDS = [5, 9, 17, 3, 44, 8, 61, 30]


@pytest.fixture(scope="module")
def direction():
    return torch.randn(64, generator=torch.Generator().manual_seed(3))


def at_last(direction):
    return lambda acts_RLD: acts_RLD[:, -1] @ direction[: acts_RLD.shape[-1]]


@pytest.mark.parametrize("baseline", ["mean", "token"])
def test_complete_and_equal_to_captum(tiny_llama, direction, baseline):
    read, token = at_last(direction), 7 if baseline == "token" else None
    found = integrated_gradients(tiny_llama, IDS, AT, read, baseline=baseline, token=token, kept=[0])
    assert found.complete
    assert abs(found.residual) <= 0.01 * abs(found.value - found.baseline)

    embedding = tiny_llama.hook_points.decoder.embedding
    end = embedding(torch.tensor([IDS]))
    start = embedding.weight.mean(dim=0).expand_as(end).clone() if token is None else embedding(torch.tensor([[token]])).expand_as(end).clone()
    start[:, 0] = end[:, 0]
    heard = []

    def forward(points):
        heard.clear()
        handle = tiny_llama.hook_points.resolve(AT.point, AT.layer).listen(lambda acts: heard.append(acts))
        try:
            tiny_llama.base(inputs_embeds=points, use_cache=False)
        finally:
            handle.remove()
        return read(heard[0])

    expected = IntegratedGradients(forward).attribute(end, start, n_steps=found.steps, method="riemann_middle").sum(dim=-1)[0]
    np.testing.assert_allclose(found.tokens, expected.detach().numpy(), rtol=1e-4, atol=1e-5 * np.abs(found.tokens).max())
    assert found.tokens[0] == 0, "what keeps its embedding has nothing to do with the difference"
    assert found.value == pytest.approx(float(forward(end)), rel=1e-5)


def test_a_path_that_is_not_long_enough_says_so(tiny_llama, direction, monkeypatch):
    """Gates switch along the path: with few steps the sum misses the difference, and that is told."""
    monkeypatch.setattr("mi_audit.engine.attribution.FEWEST", 1)
    monkeypatch.setattr("mi_audit.engine.attribution.MOST", 1)
    found = integrated_gradients(tiny_llama, IDS, AT, lambda acts: (acts[:, -1] @ direction[: acts.shape[-1]] > 0.1).float() + 0 * acts[:, -1, 0])
    assert not found.complete or found.value == found.baseline


def test_baselines_are_checked(tiny_llama, direction):
    with pytest.raises(ValueError, match="baselines are token, mean, zeros"):
        integrated_gradients(tiny_llama, IDS, AT, at_last(direction), baseline="token")


def test_where_the_highest_of_several_tokens_is_read_its_number_is_attributed(tiny_llama, tmp_path):
    sae = mi.sae(save_sae(tmp_path / "sae", tiny_llama.d_model, 40, metadata={"hook_name": "blocks.1.hook_resid_post"}))
    prompts = texts(6)
    suite = mi.suite([{"id": each.id, "text": each.text} for each in prompts], name="texts")
    reading = ReadSpec(mi.latent(sae, 3, name="three", tokens="all", pooling="max"), suite)
    encoded = {prompt.id: each for prompt, each in zip(prompts, encode_all(tiny_llama, prompts, None), strict=True)}
    pre = Encoder.of(sae.config, weights_of(sae), [3]).pre
    found = Bench(tiny_llama, alpha=0.025, seed=0).attribute(AttributionSpec(reading, "integrated_gradients", "space"))
    assert len(found) == 3
    for each in found:
        (read,) = every_token(tiny_llama, [encoded[each.prompt]], sae.at)
        own = ~read.sinks & ~np.array(encoded[each.prompt].added)
        assert each.value == pytest.approx(float(pre(torch.from_numpy(read.activations[own])).max()), rel=1e-4)
        assert abs(each.residual) <= 0.01 * abs(each.value - each.baseline)
