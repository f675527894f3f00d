"""Activations into latents and back, as sae-lens computes them: normalise, subtract the decoder's bias, multiply, add a bias, activate.

Sources: Bricken et al. 2023 (standard), Rajamanoharan et al. 2024 (gated, arXiv 2404.16014; JumpReLU, arXiv 2407.14435), Gao et al. 2024 (top-k,
arXiv 2406.04093), Dunefsky et al. 2024 (transcoders, arXiv 2406.11944), Paulo et al. 2025 (skip transcoders, arXiv 2501.18823), Costa et al. 2025 (matching
pursuit, arXiv 2506.03093), Lubana et al. 2025 (temporal, arXiv 2511.01836).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from mi_audit.errors import DetectorError
from mi_audit.plan.sae_config import SaeConfig
from mi_audit.saes.weights import SaeWeights
from mi_audit.saes.whole import class_of

_EPSILON: Final = 1e-5


@dataclass(frozen=True, eq=False)
class _Input:
    """What is done with activations [..., d_in] before the encoder, and what undoes it: x ↦ (x − mean) / scale."""

    acts: Tensor
    mean: Tensor | float
    scale: Tensor | float

    @classmethod
    def of(cls, config: SaeConfig, acts: Tensor) -> "_Input":
        acts = acts.to(torch.float32)
        mean: Tensor | float = acts.mean(dim=-1, keepdim=True) if config.metadata.centred else 0.0
        match config.normalisation:
            case "none":
                return cls(acts - mean, mean, 1.0)
            case "constant_scalar_rescale":
                return cls((acts - mean) * config.factor, mean, 1 / config.factor)
            case "constant_norm_rescale":
                scale = (acts - mean).norm(dim=-1, keepdim=True) / config.d_in**0.5
                return cls((acts - mean) / scale, mean, scale)
            case "layer_norm":
                mean = acts.mean(dim=-1, keepdim=True)
                scale = (acts - mean).std(dim=-1, keepdim=True)
                return cls((acts - mean) / (scale + _EPSILON), mean, scale)

    def undone(self, acts: Tensor) -> Tensor:
        return acts * self.scale + self.mean


@dataclass(frozen=True, eq=False)
class Encoder:
    """Activations [..., d_in] into latents [..., m] in float32: all of an SAE's, or those that were selected.

    `W` [d_in, c] holds the columns of the encoder that are needed, `biases` what its architecture adds to or holds against them [c] each, `shift` [d_in] what
    is subtracted first, `norms` [c] the decoder's where latents are ranked by them. `chosen` [m] are the latents among c where not all are wanted. `whole` is
    sae-lens's SAE, where its class encodes.
    """

    config: SaeConfig
    W: Tensor
    shift: Tensor | None
    biases: Mapping[str, Tensor]
    norms: Tensor | None
    chosen: Tensor | None = None
    whole: Any = None

    @classmethod
    def of(cls, config: SaeConfig, weights: SaeWeights, latents: Sequence[int] | None = None) -> "Encoder":
        """For all latents, or for those given. A latent that needs no other takes its own column alone; where they compete, the whole encoder."""
        biases = {name: bias for name, bias in weights.others.items() if name != "W_skip"}
        norms = weights.W_dec.norm(dim=-1) if config.rescales_by_decoder_norm else None
        shift = weights.b_dec if config.subtracts_decoder_bias else None
        whole = class_of(config, weights) if config.is_whole else None
        if latents is None:
            return cls(config, weights.W_enc, shift, biases, norms, whole=whole)
        chosen = torch.tensor(latents, device=weights.W_enc.device)
        if not config.selectable:
            return cls(config, weights.W_enc, shift, biases, norms, chosen, whole)
        return cls(config, weights.W_enc[:, chosen].contiguous(), shift, {name: bias[chosen] for name, bias in biases.items()}, norms)

    def __call__(self, acts: Tensor) -> Tensor:
        """The latents [..., m] of activations [..., d_in] of any floating type.

        A contextual SAE takes whole prompts, each from its first token on: one [L, d_in], or several [B, T, d_in] that may be filled up on the right.
        """
        given = _Input.of(self.config, acts).acts
        if self.whole is not None:
            latents: Tensor = self.whole.encode(given[None])[0] if self.config.is_contextual and given.dim() == 2 else self.whole.encode(given)
            return latents if self.chosen is None else latents[..., self.chosen]
        product = (given if self.shift is None else given - self.shift) @ self.W
        match self.config.architecture:
            case "gated":
                magnitude = product * self.biases["r_mag"].exp() + self.biases["b_mag"]
                return magnitude.relu() * (product + self.biases["b_gate"] > 0)
            case "topk" | "abstopk":
                pre = product + self.biases["b_enc"]
                return self._highest(pre if self.norms is None else pre * self.norms)
            case _:
                pre = product + self.biases["b_enc"]
                threshold = self.biases.get("threshold")
                return pre.relu() if threshold is None else pre.relu() * (pre > threshold)

    def pre(self, acts: Tensor) -> Tensor:
        """The pre-activations [..., m]: what the activation function, its threshold and the competition for the first k are still to be applied to.

        Gradients go through them everywhere, which they don't through a JumpReLU's gate. Of a gated SAE that of the gate.

        Raises:
            DetectorError: the architecture has none.
        """
        if self.whole is not None:
            raise DetectorError(
                f"latents of the architecture {self.config.architecture!r} have no pre-activation that one matrix product gives, and the value itself jumps"
                " where another latent is chosen first: they can't be attributed to tokens; attribute a probe at the same hook point"
            )
        given = _Input.of(self.config, acts).acts
        pre = (given if self.shift is None else given - self.shift) @ self.W + self.biases["b_gate" if self.config.architecture == "gated" else "b_enc"]
        if self.norms is not None:
            pre = pre * self.norms
        return pre if self.chosen is None else pre[..., self.chosen]

    def _highest(self, pre: Tensor) -> Tensor:
        """The k highest of each row, negative ones as 0; of `abstopk` the k largest with their sign."""
        signed = self.config.architecture == "abstopk"
        assert self.config.k is not None
        index = (pre.abs() if signed else pre).topk(self.config.k, dim=-1, sorted=False).indices
        values = pre if signed else pre.relu()
        if self.chosen is None:
            return torch.zeros_like(pre).scatter_(-1, index, values.gather(-1, index))
        return values[..., self.chosen] * (index[..., None] == self.chosen).any(dim=-2)


@dataclass(frozen=True, eq=False)
class Decoder:
    """Latents [..., d_sae] into what the SAE takes the activation for [..., d_out]."""

    config: SaeConfig
    weights: SaeWeights

    @cached_property
    def _whole(self) -> Any:
        return class_of(self.config, self.weights) if self.config.is_whole else None

    def __call__(self, latents: Tensor, acts: Tensor) -> Tensor:
        """The reconstruction, float32; `acts` [..., d_in] are those that were encoded, whose scale and mean it is given back.

        Of a contextual SAE it is made from `acts` alone, whole prompts as for the encoder: what it predicts from earlier tokens is in no latent.
        """
        weights = self.weights
        if self._whole is not None:
            given = _Input.of(self.config, acts)
            if not self.config.is_contextual:
                return given.undone(self._whole.decode(latents))
            return given.undone(self._whole(given.acts[None])[0] if given.acts.dim() == 2 else self._whole(given.acts))
        if self.config.rescales_by_decoder_norm:
            latents = latents / weights.W_dec.norm(dim=-1)
        decoded = latents @ weights.W_dec + weights.b_dec
        if not self.config.is_transcoder:
            return _Input.of(self.config, acts).undone(decoded)
        skip = weights.others.get("W_skip")
        return decoded if skip is None else decoded + acts.to(torch.float32) @ skip.T

    def directions(self, latents: Sequence[int]) -> Tensor:
        """What each of these latents adds to the reconstruction of a normalised activation where it is 1, [m, d_out]."""
        rows = self.weights.W_dec[list(latents)]
        return rows / rows.norm(dim=-1, keepdim=True) if self.config.rescales_by_decoder_norm else rows

    def scale(self, acts: Tensor) -> Tensor | float:
        """What the reconstruction of normalised activations is multiplied with to be one of `acts` [..., d_in]: [..., 1], or one number for all."""
        return _Input.of(self.config, acts).scale

    def silent(self, latents: Tensor, acts: Tensor) -> Tensor:
        """What it makes of activations with all their latents silent: a bias, and what a skip or a prediction from earlier tokens gives."""
        if not self.config.is_contextual:
            return self(torch.zeros_like(latents), acts)
        return self(latents, acts) - latents @ self.weights.W_dec * self.scale(acts)
