"""Every latent of an SAE as the engine reads them, or of one whose encoder has nothing learned. No torch before something has to be encoded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING

from mi_audit.errors import MissingDependencyError
from mi_audit.plan.digest import Json, digest_of
from mi_audit.plan.latents import Pooling
from mi_audit.plan.saes import SaeSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class EveryLatent:
    """All latents of an SAE; with a `seed`, those of an encoder whose columns point elsewhere at random, as long as the SAE's and with its biases."""

    sae: SaeSpec
    pooling: Pooling
    seed: int | None = None

    @property
    def key(self) -> str:
        """Digest of the SAE's files, of how they are read and of what is done with them."""
        config = self.sae.config.describe()
        return digest_of({"sae": self.sae.digest, "config": config, "every": True, "pooling": self.pooling, "seed": self.seed, **computed_by(self.sae)})[:40]

    @property
    def width(self) -> int:
        """d_sae."""
        return self.sae.config.d_sae

    stem = None

    @property
    def whole_prompt(self) -> bool:
        """Whether a token's latents depend on those before it."""
        return self.sae.config.is_contextual

    def on(self, device: "torch.device") -> "Callable[[Tensor], Tensor]":
        """From activations [..., d_in] to latents [..., d_sae].

        Raises:
            DetectorError: the SAE's files have changed since they were named, or are damaged.
        """
        return _encoder(self, device)


def computed_by(sae: SaeSpec) -> dict[str, Json]:
    """What computes the latents besides the code here, with its version. Raises MissingDependencyError where it is not installed."""
    if not sae.config.is_whole:
        return {}
    try:
        return {"sae-lens": metadata.version("sae-lens")}
    except metadata.PackageNotFoundError as error:
        raise MissingDependencyError(f"an SAE of the architecture {sae.config.architecture!r} needs sae-lens: pip install 'mi-audit[run]'") from error


@lru_cache(maxsize=4)
def _encoder(every: EveryLatent, device: "torch.device") -> "Callable[[Tensor], Tensor]":
    import torch

    from mi_audit.saes.encoding import Encoder
    from mi_audit.saes.latents import weights_of  # which is made of these

    weights = weights_of(every.sae)
    if every.seed is not None:
        random = torch.Generator().manual_seed(every.seed)
        columns = torch.randn(weights.W_enc.shape, generator=random)
        weights = weights.with_encoder(columns * (weights.W_enc.norm(dim=0) / columns.norm(dim=0)), tied=every.sae.config.is_tied)
    return Encoder.of(every.sae.config, weights.to(device))
