"""TransformerLens's bridge as the independent source of what stands at each hook point."""

import copy
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from mi_audit.model.loaded import LoadedModel

TOLERANCE = 5e-5
"""Largest relative difference of a token, in float32."""


def bridge_of(model: LoadedModel) -> TransformerBridge:
    """A bridge over a copy of the model: it puts its own modules in place of the blocks'."""
    with tempfile.TemporaryDirectory() as folder:
        model.tokenizer.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return TransformerBridge.boot_transformers(
            model.ref, hf_model=copy.deepcopy(model.hf), tokenizer=tokenizer, device=str(model.device), dtype=model.dtype
        )


@torch.inference_mode()
def activations(bridge: TransformerBridge, ids: Sequence[int], places: Sequence[tuple[str, int | None]]) -> dict[tuple[str, int | None], Tensor]:
    """What the bridge computes for one prompt: (hook point, layer) → [position, width], heads side by side."""
    names = {place: name_of(*place) for place in places}
    wanted = set(names.values())
    _, cache = bridge.run_with_cache(torch.tensor([list(ids)]), names_filter=wanted.__contains__)
    return {place: cache[name][0].flatten(start_dim=1) for place, name in names.items()}


def name_of(point: str, layer: int | None) -> str:
    """TransformerLens's full name: `blocks.3.hook_resid_post`, `blocks.3.attn.hook_z`, `hook_embed`."""
    if layer is None:
        return f"hook_{point}"
    return f"blocks.{layer}.{point}" if "." in point else f"blocks.{layer}.hook_{point}"


def worst(one: Tensor, other: Tensor) -> float:
    """The largest relative difference of a token, of [token, width] each."""
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max())
