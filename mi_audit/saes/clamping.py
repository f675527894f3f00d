"""Clamping latents of an SAE (Templeton et al., "Scaling Monosemanticity", 2024): the activation as it would be with other values of them, its error kept."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mi_audit.engine.interventions import require_finite, require_rows, require_width
from mi_audit.errors import DetectorError
from mi_audit.plan.saes import SaeSpec
from mi_audit.saes.encoding import Decoder, Encoder
from mi_audit.saes.latents import weights_of


@dataclass(frozen=True, eq=False)
class ClampLatent:
    """An intervention: x + s·Σᵢ (cᵢ − fᵢ)·dᵢ over latents i, with fᵢ the latent's value on x, cᵢ the one that it is given, dᵢ its row of the decoder and s the
    scale that a normalisation takes out of x and gives back.

    That is the decoded latents with fᵢ replaced by cᵢ, plus what the SAE fails to reconstruct of x: x itself where every latent keeps its value. Values
    [m], or [R, m] for each row of a batch, are in the latents' own unit, as `Encoder` gives them; k times a latent's maximum on a corpus says nothing without
    the corpus's name. `chosen` bool [R, m]: those that are clamped in a row, where not all are; the others keep their value.

    Raises:
        DetectorError: a transcoder or a contextual SAE; no latent, one twice, or one that the SAE does not have; values of another shape, or not finite; a
            choice of another shape or type.
    """

    sae: SaeSpec
    latents: tuple[int, ...]
    values: Tensor
    chosen: Tensor | None = None

    def __post_init__(self) -> None:
        config, name = self.sae.config, self.sae.name
        if config.is_transcoder:
            raise DetectorError(
                f"{name}: a transcoder reads one hook point and reconstructs another, so what it reads does not change with its latents; add a latent's"
                f" decoder row at {self.sae.out or 'the hook point that it reconstructs'} instead"
            )
        if config.is_contextual:
            raise DetectorError(
                f"{name}: the latents of a token depend on the tokens before it, which would change them in turn; add a latent's decoder row instead"
            )
        if not self.latents or len(set(self.latents)) != len(self.latents):
            raise DetectorError(f"{name}: latents {list(self.latents)}: name at least one, and none twice")
        if beyond := [latent for latent in self.latents if not 0 <= latent < config.d_sae]:
            raise DetectorError(f"{name}: it has no latent {beyond[0]}; its latents are 0 to {config.d_sae - 1}")
        if self.values.dim() not in (1, 2) or self.values.shape[-1] != len(self.latents):
            raise DetectorError(
                f"{name}: values of shape {tuple(self.values.shape)} for {len(self.latents)} latents: give one for each, or a row of them for each row"
            )
        require_finite(f"{name}: what its latents are clamped to", self.values)
        if self.chosen is not None and (self.chosen.dtype != torch.bool or self.chosen.dim() != 2 or self.chosen.shape[1] != len(self.latents)):
            raise DetectorError(
                f"{name}: which of {len(self.latents)} latents are clamped is said by a row of so many truth values for each row of a batch, not by"
                f" {self.chosen.dtype} of shape {tuple(self.chosen.shape)}"
            )

    @property
    def width(self) -> int:
        """d_in."""
        return self.sae.config.d_in

    def __call__(self, acts_RLD: Tensor) -> Tensor:
        """The activation with the latents clamped.

        Raises:
            HookPointError: another width, or another number of rows than of values or choices.
            DetectorError: the SAE's files have changed since the plan was made, or are damaged.
        """
        require_width(self, acts_RLD)
        if self.values.dim() == 2:
            require_rows("values", self.values, acts_RLD)
        if self.chosen is not None:
            require_rows("choices of latents", self.chosen, acts_RLD)
        encode, directions_MD, scale = _parts(self.sae, self.latents, acts_RLD.device)
        values = self.values.to(acts_RLD)
        missing_RLM = (values if values.dim() == 1 else values[:, None]) - encode(acts_RLD)
        if self.chosen is not None:
            missing_RLM = missing_RLM.masked_fill(~self.chosen[:, None].to(acts_RLD.device), 0.0)
        return acts_RLD + missing_RLM @ directions_MD * scale(acts_RLD)


@lru_cache(maxsize=16)
def _parts(sae: SaeSpec, latents: tuple[int, ...], device: torch.device) -> tuple[Encoder, Tensor, Callable[[Tensor], Tensor | float]]:
    """The encoder of these latents, their rows of the decoder [m, width], and the scale of activations."""
    weights = weights_of(sae).to(device)
    decoder = Decoder(sae.config, weights)
    return Encoder.of(sae.config, weights, latents), decoder.directions(latents), decoder.scale
