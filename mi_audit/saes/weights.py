"""The weights of an SAE, read from safetensors that anybody may have written, and held against its configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mi_audit.errors import DetectorError
from mi_audit.plan.sae_config import SaeConfig

_NAMES: Final = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "abstopk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "transcoder": ("b_enc",),
    "skip_transcoder": ("b_enc", "W_skip"),
    "jumprelu_transcoder": ("b_enc", "threshold"),
    "jumprelu_skip_transcoder": ("b_enc", "threshold", "W_skip"),
    "matching_pursuit": (),
}


@dataclass(frozen=True, eq=False)
class SaeWeights:
    """Of an SAE of d_sae latents, float32: `W_enc` [d_in, d_sae], `W_dec` [d_sae, d_out], `b_dec` [d_out]; in `others` what its architecture has besides.

    Where the encoder is tied to the decoder, `W_enc` is `W_dec` transposed.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    others: Mapping[str, Tensor]

    def with_encoder(self, columns: Tensor, *, tied: bool) -> "SaeWeights":
        """The same with another encoder [d_in, d_sae], and with the decoder that it is tied to."""
        return replace(self, W_enc=columns, W_dec=columns.T) if tied else replace(self, W_enc=columns)

    def to(self, device: torch.device) -> "SaeWeights":
        """The same on a device."""
        others = {name: tensor.to(device) for name, tensor in self.others.items()}
        return SaeWeights(self.W_enc.to(device), self.W_dec.to(device), self.b_dec.to(device), others)


def read_weights(path: Path, config: SaeConfig) -> SaeWeights:
    """Read the tensors of a safetensors file, in float32.

    Raises:
        DetectorError: the file can't be read or is damaged; a tensor is missing, is one too many, or has another shape than `config` says; a value is not
            finite.
    """
    expected = _shapes(config)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if absent := sorted(set(expected) - names):
                raise DetectorError(f"{path.name} holds no tensor {absent[0]!r}, which an SAE of the architecture {config.architecture!r} has")
            if extra := sorted(names - set(expected)):
                raise DetectorError(f"{path.name} holds the tensor {extra[0]!r}, which an SAE of the architecture {config.architecture!r} does not have")
            for name, shape in expected.items():
                found = tuple(file.get_slice(name).get_shape())
                if found != shape:
                    raise DetectorError(f"{path.name}: {name} has the shape {list(found)}, cfg.json says {list(shape)}")
            tensors = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError) as error:
        raise DetectorError(f"{path.name} can't be read as safetensors ({error}); give the folder that sae-lens's save_model wrote") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise DetectorError(f"{path.name}: {name} is of type {tensor.dtype}; save the SAE in float32")
        if not torch.isfinite(tensor).all():
            raise DetectorError(f"{path.name}: {name} holds a number that is not finite")
        tensors[name] = tensor.to(torch.float32)
    own = {name: tensors[name] for name in expected if name not in ("W_enc", "W_dec", "b_dec")}
    return SaeWeights(tensors["W_dec"].T if config.is_tied else tensors["W_enc"], tensors["W_dec"], tensors["b_dec"], own)


def _shapes(config: SaeConfig) -> dict[str, tuple[int, ...]]:
    if config.architecture == "temporal":
        own = _attention_shapes(config)
    else:
        own = {name: (config.d_out, config.d_in) if name == "W_skip" else (config.d_sae,) for name in _NAMES[config.architecture]}
    encoder = {} if config.is_tied else {"W_enc": (config.d_in, config.d_sae)}
    return {**encoder, "W_dec": (config.d_sae, config.d_out), "b_dec": (config.d_out,), **own}


def _attention_shapes(config: SaeConfig) -> dict[str, tuple[int, ...]]:
    told = dict(config.settings)
    layers, bottleneck = told["n_attn_layers"], told["bottleneck_factor"]
    assert isinstance(layers, int) and isinstance(bottleneck, int)
    widths = {"k_ctx": config.d_sae // bottleneck, "q_target": config.d_sae // bottleneck, "v_ctx": config.d_sae, "c_proj": config.d_sae}
    return {
        f"attn_layers.{layer}.{name}.{part}": shape
        for layer in range(layers)
        for name, width in widths.items()
        for part, shape in (("weight", (width, config.d_sae)), ("bias", (width,)))
    }
