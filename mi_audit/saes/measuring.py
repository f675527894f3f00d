"""Measures an SAE on prompts: encodes and decodes the activations of their tokens, and has the model go on from what comes out.

A transcoder is measured at the hook point that it reconstructs. Attention sinks, which are left out, are then those of either hook point: at the one that it
encodes no latent is read of them, and at the one that it reconstructs one of them would decide the variance. After a norm no token stands out, so of a
transcoder that reads there they are those of the residual stream before the norm (`HookMap.sinks_seen_at`).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from mi_audit.engine.batches import Ids
from mi_audit.engine.every_token import EveryToken
from mi_audit.engine.progress import Hearer
from mi_audit.engine.splicing import next_token_losses
from mi_audit.errors import DetectorError
from mi_audit.model.loaded import LoadedModel
from mi_audit.plan.saes import SaeSpec
from mi_audit.saes.encoding import Decoder, Encoder
from mi_audit.saes.latents import weights_of
from mi_audit.saes.quality import Reconstruction, Recovery
from mi_audit.stats.checks import Floats

_AT_A_TIME: Final = 512


def reconstruction(sae: SaeSpec, prompts: Sequence[EveryToken], wanted: Sequence[EveryToken] | None = None) -> Reconstruction:
    """Encode and decode every ordinary token of the prompts and hold what comes out against what was wanted.

    Args:
        sae: the SAE.
        prompts: with their activations [L, d_in] at the hook point that it encodes.
        wanted: the same prompts with their activations [L, d_out] at the hook point that it reconstructs, where that is another.

    Raises:
        DetectorError: the SAE's files have changed or are damaged, the activations have another width, or a prompt has no token that is no sink.
    """
    weights = weights_of(sae)
    encode, decode = Encoder.of(sae.config, weights), Decoder(sae.config, weights)
    rows, fires = [], torch.zeros(sae.config.d_sae, dtype=torch.float64)
    for number, (given, goal) in enumerate(zip(prompts, prompts if wanted is None else wanted, strict=True)):
        ordinary = ~(given.sinks | goal.sinks)
        acts, target = torch.from_numpy(given.activations), torch.from_numpy(goal.activations[ordinary])
        for part, width, at, field in ((acts, sae.config.d_in, sae.at, "d_in"), (target, sae.config.d_out, sae.reconstructs, "d_out")):
            if part.shape[-1] != width:
                raise DetectorError(f"{sae.name}: {field} is {width}, but {at} of this model has {part.shape[-1]} numbers")
        if not len(target):
            raise DetectorError(f"{sae.name}: prompt {number} has no token that is no attention sink, so nothing of it can be reconstructed")
        latents = encode(acts) if sae.config.is_contextual else torch.cat([encode(part) for part in torch.split(acts, _AT_A_TIME)])
        made, silent, latents = decode(latents, acts)[ordinary], decode.silent(latents, acts)[ordinary], latents[ordinary]
        fires += (latents != 0).sum(dim=0)
        rows.append(_sums(target.double(), made.double(), silent.double(), latents))
    tokens, residuals, left, squares, fired, ratios = (np.array(column) for column in zip(*((row[0], *row[2:]) for row in rows), strict=True))
    return Reconstruction(tokens, residuals, left, squares, np.stack([row[1] for row in rows]), fired, ratios, fires.numpy())


def recovery(model: LoadedModel, sae: SaeSpec, prompts: Sequence[Ids], mean: Floats, progress: Hearer | None = None) -> Recovery:
    """Pass prompts with what the SAE reconstructs replaced at every token but attention sinks: by the reconstruction, by `mean` [d_out], by zeros.

    Raises:
        DetectorError: the SAE's files have changed or are damaged.
        HookPointError, PromptError: as `engine.splicing.next_token_losses`.
    """
    weights = weights_of(sae).to(model.device)
    encode, decode = Encoder.of(sae.config, weights), Decoder(sae.config, weights)
    middle = torch.from_numpy(mean).to(model.device, torch.float32)
    at, out = sae.at.in_model(model.n_layers), sae.reconstructs.in_model(model.n_layers)

    def reconstructed(acts: Tensor) -> Tensor:
        return decode(encode(acts), acts)

    def averaged(acts: Tensor) -> Tensor:
        return middle.expand(*acts.shape[:-1], -1)

    def zeros(acts: Tensor) -> Tensor:
        return torch.zeros_like(averaged(acts))

    losses, kls, tokens = next_token_losses(model, prompts, out, [reconstructed, averaged, zeros], given=at, progress=progress)
    plain, sae_losses, mean_losses, zero_losses = losses.numpy()
    return Recovery(tokens.double().numpy(), plain, sae_losses, mean_losses, zero_losses, kls[0].numpy())


def _sums(acts: Tensor, decoded: Tensor, silent: Tensor, latents: Tensor) -> tuple[float, Floats, float, float, float, float, float]:
    """Tokens, Σx, Σ‖x − x̂‖², Σ‖x − x̂₀‖², Σ‖x‖², latents that fire, Σ‖x̂‖ / ‖x‖."""
    ratios = decoded.norm(dim=-1) / acts.norm(dim=-1)
    residual, left, square = (float((each**2).sum()) for each in (acts - decoded, acts - silent, acts))
    return float(len(acts)), acts.sum(dim=0).numpy(), residual, left, square, float((latents != 0).sum()), float(ratios.sum())
