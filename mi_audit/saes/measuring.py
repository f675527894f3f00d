"""Measures an SAE on prompts: encodes and decodes the activations of their tokens, and has the model go on from what comes out."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from mi_audit.engine.batches import Ids
from mi_audit.engine.every_token import EveryToken
from mi_audit.engine.splicing import next_token_losses
from mi_audit.errors import DetectorError
from mi_audit.model.loaded import LoadedModel
from mi_audit.plan.places import At
from mi_audit.plan.saes import SaeSpec
from mi_audit.saes.encoding import Decoder, Encoder
from mi_audit.saes.latents import weights_of
from mi_audit.saes.quality import Reconstruction, Recovery
from mi_audit.stats.checks import Floats

_AT_A_TIME: Final = 512


def reconstruction(sae: SaeSpec, prompts: Sequence[EveryToken]) -> Reconstruction:
    """Encode and decode every ordinary token of the prompts, whose activations are those that the SAE encodes and reconstructs.

    Raises:
        DetectorError: the SAE's files have changed or are damaged, the activations have another width, or a prompt has no token that is no sink.
    """
    if sae.config.is_transcoder:
        raise DetectorError(f"{sae.name}: a transcoder reconstructs another hook point than it encodes")
    weights = weights_of(sae)
    encode, decode = Encoder.of(sae.config, weights), Decoder(sae.config, weights)
    rows, fires = [], torch.zeros(sae.config.d_sae, dtype=torch.float64)
    for number, prompt in enumerate(prompts):
        acts = torch.from_numpy(prompt.activations[~prompt.sinks])
        if acts.shape[-1] != sae.config.d_in:
            raise DetectorError(f"{sae.name}: it encodes {sae.config.d_in} numbers (d_in), but {sae.at} of this model has {acts.shape[-1]}")
        if not len(acts):
            raise DetectorError(f"{sae.name}: prompt {number} has no token that is no attention sink, so nothing of it can be reconstructed")
        latents = torch.cat([encode(part) for part in torch.split(acts, _AT_A_TIME)])
        fires += (latents != 0).sum(dim=0)
        rows.append(_sums(acts.double(), decode(latents, acts).double(), latents))
    tokens, residuals, squares, fired, ratios = (np.array(column) for column in zip(*((row[0], *row[2:]) for row in rows), strict=True))
    return Reconstruction(tokens, residuals, squares, np.stack([row[1] for row in rows]), fired, ratios, fires.numpy())


def recovery(model: LoadedModel, sae: SaeSpec, at: At, prompts: Sequence[Ids], mean: Floats) -> Recovery:
    """Pass prompts with the activation of every token but attention sinks replaced: by the reconstruction, by `mean` [d_out], by zeros.

    `at` is where the SAE encodes, its layer absolute.

    Raises:
        DetectorError: the SAE's files have changed or are damaged.
        HookPointError, PromptError: as `engine.splicing.next_token_losses`.
    """
    weights = weights_of(sae).to(model.device)
    encode, decode = Encoder.of(sae.config, weights), Decoder(sae.config, weights)
    middle = torch.from_numpy(mean).to(model.device, torch.float32)

    def reconstructed(acts: Tensor) -> Tensor:
        return decode(encode(acts), acts)

    losses, kls, tokens = next_token_losses(model, prompts, at, [reconstructed, middle.expand_as, torch.zeros_like])
    plain, sae_losses, mean_losses, zero_losses = losses.numpy()
    return Recovery(tokens.double().numpy(), plain, sae_losses, mean_losses, zero_losses, kls[0].numpy())


def _sums(acts: Tensor, decoded: Tensor, latents: Tensor) -> tuple[float, Floats, float, float, float, float]:
    """Tokens, Σx, Σ‖x − x̂‖², Σ‖x‖², latents that fire, Σ‖x̂‖ / ‖x‖."""
    ratios = decoded.norm(dim=-1) / acts.norm(dim=-1)
    residual, square = ((acts - decoded) ** 2).sum(), (acts**2).sum()
    return float(len(acts)), acts.sum(dim=0).numpy(), float(residual), float(square), float((latents != 0).sum()), float(ratios.sum())
