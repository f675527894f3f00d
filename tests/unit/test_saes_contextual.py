"""Latents that depend on the tokens before are those that sae-lens gives for each prompt alone, however prompts share rows and beginnings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mi_audit as mi
from mi_audit.detectors.latents import FittedLatents
from mi_audit.engine.batches import plan_batches
from mi_audit.engine.capture import Site, capture
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.streaming import streamed
from mi_audit.errors import PlanError
from mi_audit.model.packing import Packing
from mi_audit.plan.places import Tokens
from mi_audit.plan.steering import steer_spec
from mi_audit.sae_sources import sae
from mi_audit.saes.every_latent import EveryLatent
from mi_audit.saes.latents import LatentGroups
from mi_audit.saes.measuring import reconstruction, recovery
from tests.unit.texts import texts

SAE = pytest.importorskip("sae_lens", reason="sae-lens is in the run extra").SAE
BEGIN = "you are a helpful one. "
LATENTS = 64


@pytest.fixture
def temporal(tmp_path, tiny_llama):
    """sae-lens's SAE with random weights, and ours from the files that it wrote."""
    told = {"d_in": tiny_llama.d_model, "d_sae": LATENTS, "n_heads": 2, "bottleneck_factor": 8, "n_attn_layers": 2, "kval_topk": 8}
    told |= {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 7.0}
    theirs = SAE.from_dict({"architecture": "temporal", **told, "metadata": {"hook_name": "blocks.1.hook_resid_post"}})
    draw = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) * (0.5 if name.startswith("attn") else 2.0)
    theirs.save_model(tmp_path / "temporal")
    return theirs.requires_grad_(False), sae(tmp_path / "temporal")


def alone(model, prompt):
    """The activations of a prompt that passes by itself, [1, L, width], where the SAE reads."""
    return model.hf(**model.tokenizer(prompt.text, return_tensors="pt"), output_hidden_states=True).hidden_states[2]


@pytest.mark.parametrize("packed", [True, False])
def test_latents_are_those_of_each_prompt_alone(tiny_llama, temporal, packed):
    theirs, spec = temporal
    model = tiny_llama if packed else replace(tiny_llama, packing=Packing(reason="not here"))
    prompts = [*texts(12, begin=BEGIN), *texts(8, shortest=1, longest=9)]
    batches = plan_batches([each.ids for each in encode_all(model, prompts, None)], model.packing)
    assert any(batch.prefix for batch in batches) is packed and any(len(row) > 1 for batch in batches for row in batch.rows) is packed
    groups = LatentGroups(spec, ((1, 2), (40, 7), (9, 63)), "sum", "max")
    last, pooled, mean = Site(spec.at, Tokens("last"), EveryLatent(spec, "mean")), Site(spec.at, Tokens("all"), groups), Site(spec.at, Tokens("all"))
    read = capture(model, prompts, [last, pooled, mean])
    for row, prompt in enumerate(prompts):
        acts = alone(model, prompt)
        latents = theirs.encode(acts)[0]
        assert 0.02 < (latents != 0).float().mean() < 0.5
        np.testing.assert_allclose(read.vectors(last)[row], latents[-1], rtol=1e-4, atol=1e-5 * float(latents.max()))
        expected = torch.stack([latents[1:, list(group)].sum(dim=1).amax() for group in groups.groups])
        np.testing.assert_allclose(read.vectors(pooled)[row], expected, rtol=1e-4, atol=1e-5 * float(latents.max()))
        np.testing.assert_allclose(read.vectors(mean)[row], acts[0, 1:].mean(dim=0), rtol=1e-4, atol=1e-5)
        scores = FittedLatents(None, "", spec.at, groups, None, {}).score_tokens(acts[0].double().numpy())
        np.testing.assert_allclose(scores, latents[:, [1, 2]].sum(dim=1), rtol=1e-4, atol=1e-5 * float(latents.max()))
    assert not torch.allclose(theirs.encode(acts[:, -1:])[0, 0], latents[-1], rtol=0.1), "what came before has to matter"


def test_its_latents_are_no_effect_of_an_experiment(temporal):
    _, spec = temporal
    fit = mi.suite([{"text": f"{row} {'yes' if row % 2 else 'no'}", "label": bool(row % 2)} for row in range(8)], name="fit")
    probe = mi.probe("probe", method="difference_of_means", at=mi.at("resid_post", layer=0), fit=fit)
    score = mi.effects.detector_score(mi.latent(spec, 3, name="latent", found_on=fit))
    asked = mi.suite([{"text": f"asked {row}"} for row in range(4)], name="asked")
    with pytest.raises(PlanError, match="latents of the architecture 'temporal', which take whole prompts; read a probe there"):
        steer_spec(probe, asked, score, (1,), unit=None, tokens="generated", profile=(), controls=False)


def test_what_it_explains_and_recovers_is_of_whole_prompts(tiny_llama, temporal):
    theirs, spec = temporal
    ids = [each.ids for each in encode_all(tiny_llama, texts(6), None)]
    read, groups = streamed(tiny_llama, ids, spec.at), [str(number) for number in range(6)]
    assert not any(each.sinks.any() for each in read)
    ours = reconstruction(spec, read)
    acts = [torch.from_numpy(each.activations)[None] for each in read]
    given, made = torch.cat([each[0] for each in acts]).double(), torch.cat([theirs(each)[0] for each in acts]).double()
    explained = 1 - ((given - made) ** 2).sum() / ((given - given.mean(dim=0)) ** 2).sum()
    assert ours.explained_variance(groups, 0.025).value == pytest.approx(float(explained), rel=1e-4)
    assert ours.l0(groups, 0.025).value == pytest.approx(float(torch.cat([(theirs.encode(each)[0] != 0).sum(-1) for each in acts]).double().mean()))

    predicted = [theirs.encode_with_predictions(each)[1][0] for each in acts]
    left = sum(float(((each[0] - (codes @ theirs.W_dec + theirs.b_dec) / 7.0).double() ** 2).sum()) for each, codes in zip(acts, predicted, strict=True))
    assert ours.silent.sum() == pytest.approx(left, rel=1e-4), "what is predicted from earlier tokens is no latent's doing"

    first = [replace(each, sinks=np.arange(len(each.ids)) == 0) for each in read]
    given, made = torch.cat([each[0, 1:] for each in acts]).double(), torch.cat([theirs(each)[0, 1:] for each in acts]).double()
    explained = 1 - ((given - made) ** 2).sum() / ((given - given.mean(dim=0)) ** 2).sum()
    without = reconstruction(spec, first).explained_variance(groups, 0.025)
    assert without.value == pytest.approx(float(explained), rel=1e-4), "sinks are left out of what is measured, and not of what later tokens look at"

    cost = recovery(tiny_llama, spec, ids, ours.sums.sum(0) / ours.tokens.sum())
    handle = tiny_llama.hook_points.resolve(spec.at.point, spec.at.layer).intervene(theirs)
    for row, each in enumerate(ids):
        logits = tiny_llama.hf(input_ids=torch.tensor([each])).logits[0, :-1]
        assert cost.sae[row] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, torch.tensor(each[1:]), reduction="sum")), rel=1e-4)
    handle.remove()
