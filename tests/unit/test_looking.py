"""What a latent is said to be about is what the model and the SAE's weights say."""

import pytest
import torch

import mi_audit as mi
from mi_audit.errors import DetectorError
from mi_audit.model.load import load
from mi_audit.plan.places import At
from mi_audit.reporting.latent_page import render
from mi_audit.saes.latents import weights_of
from mi_audit.saes.logit_effect import logit_effect
from mi_audit.saes.looking import look
from mi_audit.suites.suite import suite
from tests.agreement.tiny_models import save_tiny
from tests.unit.saes import save_sae

HOOK = {"hook_name": "blocks.1.hook_resid_post", "neuronpedia_id": "tiny/1-res"}
PROMPTS = suite([{"text": f"{row * 7919 % 1000} {'yes' if row % 2 else 'no'} <b>", "id": f"p{row}"} for row in range(24)], name="answers")


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_the_effect_on_the_logits_is_the_derivative_of_the_head(architecture, tmp_path):
    """At a vector of mean 0 that is as long as the norm wants it, and orthogonal to the direction, the head's derivative has no part of the norm's scale."""
    model = load(str(save_tiny(tmp_path / architecture, architecture)), progress=False)
    draw = torch.Generator().manual_seed(0)
    direction, base = torch.randn(model.d_model, generator=draw), torch.randn(model.d_model, generator=draw, dtype=torch.float64)
    effect = logit_effect(model, At("resid_post", layer=0), direction)
    norm, head = model.hook_points.decoder.final_norm.double(), model.hf.get_output_embeddings().double()
    base -= base.mean()
    wide = (direction - direction.mean() if architecture == "gpt2" else direction).double()
    base -= wide * (base @ wide) / (wide @ wide)
    base *= 1e4  # so long that the norm's epsilon is nothing
    scale = base.square().mean().sqrt()
    _, derivative = torch.autograd.functional.jvp(lambda acts: head(norm(acts)), base, direction.double())
    torch.testing.assert_close(effect.double(), derivative * scale, rtol=1e-3, atol=1e-3 * float(effect.abs().max()))


def test_a_latent_is_shown_where_it_fires(tiny_llama, tmp_path):
    sae = mi.sae(save_sae(tmp_path / "sae", tiny_llama.d_model, 40, metadata=HOOK))
    view = look(tiny_llama, sae, 3, PROMPTS, None)
    assert view.neuronpedia == "https://www.neuronpedia.org/tiny/1-res/3"
    assert view.counts.sum() == view.firings and 0 < view.firings <= view.tokens
    assert [shown.highest for shown in view.top] == sorted((shown.highest for shown in view.top), reverse=True)
    rows = torch.nn.functional.normalize(weights_of(sae).W_dec, dim=1)
    best = (rows @ rows[3]).masked_fill(torch.arange(40) == 3, -1).argmax()
    assert view.nearest[0] == (int(best), pytest.approx(float(rows[best] @ rows[3]), rel=1e-5))
    assert view.promoted[0][1] >= view.promoted[-1][1] > view.suppressed[-1][1] >= view.suppressed[0][1]
    page = render("<i>sae", "resid_post at layer 1", "tiny", view)
    assert (
        "<i>sae" not in page
        and "&lt;i&gt;sae" in page
        and "<li>&gt;" in page
        and "<script" not in page
        and page == render("<i>sae", "resid_post at layer 1", "tiny", view)
    )
    with pytest.raises(DetectorError, match="latents 0 to 39, not 40"):
        look(tiny_llama, sae, 40, PROMPTS, None)


def test_an_address_is_built_of_plain_words_alone(tiny_llama, tmp_path):
    sae = mi.sae(save_sae(tmp_path / "sae", tiny_llama.d_model, 40, metadata=HOOK | {"neuronpedia_id": "x/../..?javascript:"}))
    assert look(tiny_llama, sae, 3, PROMPTS, None).neuronpedia is None
