"""Latents and reconstructions equal those of sae-lens, read from files that sae-lens wrote."""

from pathlib import Path

import pytest
import torch

from mi_audit.plan.sae_config import parse
from mi_audit.saes.encoding import Decoder, Encoder
from mi_audit.saes.weights import read_weights

pytest.importorskip("sae_lens", reason="sae-lens is in the run extra")

D_IN, D_SAE, N = 48, 160, 200

KINDS = [
    ("standard", {}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("standard", {"normalize_activations": "layer_norm"}),
    ("standard", {"normalize_activations": "constant_norm_rescale"}),
    ("gated", {}),
    ("gated", {"normalize_activations": "layer_norm"}),
    ("jumprelu", {}),
    ("jumprelu", {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False}),
    ("topk", {"k": 12}),
    ("topk", {"k": 12, "rescale_acts_by_decoder_norm": True}),
    ("topk", {"k": 12, "normalize_activations": "layer_norm"}),
    ("abstopk", {"k": 12}),
    ("transcoder", {"apply_b_dec_to_input": False, "d_out": 40}),
    ("transcoder", {"apply_b_dec_to_input": False, "d_out": 40, "normalize_activations": "layer_norm"}),
    ("skip_transcoder", {"apply_b_dec_to_input": False, "d_out": 40}),
    ("jumprelu_transcoder", {"apply_b_dec_to_input": False, "d_out": 40}),
    ("jumprelu_skip_transcoder", {"apply_b_dec_to_input": False, "d_out": 40}),
]


def acts() -> torch.Tensor:
    return torch.randn(N, D_IN, generator=torch.Generator().manual_seed(1)) * 3 + 0.5


def saved(folder: Path, architecture: str, options: dict[str, object]):
    """An SAE of sae-lens with random weights, some of whose latents fire, and the folder that it wrote."""
    from sae_lens import SAE

    sae = SAE.from_dict({"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "metadata": {}, **options})
    draw = torch.Generator().manual_seed(0)
    for name, parameter in sae.named_parameters():
        scale = 0.3 if name in ("threshold", "r_mag") else 0.2
        parameter.data = torch.randn(parameter.shape, generator=draw) * scale
    sae.threshold.data.abs_() if "threshold" in dict(sae.named_parameters()) else None
    sae.save_model(folder)
    return sae


@pytest.mark.parametrize(("architecture", "options"), KINDS, ids=[f"{kind}-{'-'.join(options)}" for kind, options in KINDS])
def test_latents_and_reconstructions_equal_those_of_sae_lens(architecture: str, options: dict[str, object], tmp_path: Path) -> None:
    theirs = saved(tmp_path, architecture, options)
    config = parse((tmp_path / "cfg.json").read_bytes(), "cfg.json")
    weights = read_weights(tmp_path / "sae_weights.safetensors", config)
    given = acts()
    with torch.no_grad():
        expected = theirs.encode(given)
        decoded = theirs(given)
    ours = Encoder.of(config, weights)(given)
    assert 0.02 < (expected != 0).float().mean() < 0.9
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    chosen = [3, 159, 0, 77]
    torch.testing.assert_close(Encoder.of(config, weights, chosen)(given), expected[:, chosen], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(Decoder(config, weights)(ours, given), decoded, rtol=1e-5, atol=1e-4)
