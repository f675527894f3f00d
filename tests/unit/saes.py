"""Small SAEs as sae-lens saves them, written without it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mi_audit.plan.saes import CONFIG, WEIGHTS


def save_sae(folder: Path, d_in: int, d_sae: int, architecture: str = "standard", *, seed: int = 0, metadata: dict | None = None, **options) -> Path:
    """An SAE with random weights, of the kinds that have one bias alone, a threshold too, or a decoder alone."""
    if architecture == "transcoder":
        options = {"d_out": d_in, "apply_b_dec_to_input": False, **options}
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        "W_enc": torch.randn(d_in, d_sae, generator=draw) / d_in**0.5,
        "W_dec": torch.randn(d_sae, options.get("d_out", d_in), generator=draw) / d_in**0.5,
        "b_enc": torch.randn(d_sae, generator=draw) * 0.1,
        "b_dec": torch.randn(options.get("d_out", d_in), generator=draw) * 0.1,
    }
    if architecture == "matching_pursuit":
        tensors = {"W_dec": tensors["W_dec"] / tensors["W_dec"].norm(dim=1, keepdim=True), "b_dec": tensors["b_dec"]}
    if architecture == "jumprelu":
        tensors["threshold"] = torch.rand(d_sae, generator=draw) * 0.3
    config = {"architecture": architecture, "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu", "normalize_activations": "none"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({**config, "metadata": {"sae_lens_version": "6.54.12", **(metadata or {})}, **options}))
    return folder
