"""Latents of an SAE as the engine reads them, token by token, on the way of a forward pass. No torch before something has to be encoded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from mi_audit.errors import DetectorError
from mi_audit.plan.digest import Json, digest_of, sha256_of_file
from mi_audit.plan.latents import Combine, Pooling
from mi_audit.plan.saes import CONFIG, WEIGHTS, SaeSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mi_audit.saes.weights import SaeWeights


@dataclass(frozen=True, eq=False)
class LatentGroups:
    """Groups of latents of one SAE, m of them: at each token the latents of a group become one number. Equal where `key` is."""

    sae: SaeSpec
    groups: tuple[tuple[int, ...], ...]
    combine: Combine
    pooling: Pooling

    @cached_property
    def key(self) -> str:
        """Digest of the SAE's files, the latents and how they become one number."""
        groups: list[Json] = [list(group) for group in self.groups]
        return digest_of({"sae": self.sae.digest, "groups": groups, "combine": self.combine, "pooling": self.pooling})[:40]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LatentGroups) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def width(self) -> int:
        """m."""
        return len(self.groups)

    def on(self, device: "torch.device") -> "Callable[[Tensor], Tensor]":
        """From activations [..., d_in] to the groups' numbers [..., m].

        Raises:
            DetectorError: the SAE's files have changed since the plan was made, or are damaged.
        """
        return _encoder(self, device)


@lru_cache(maxsize=16)
def _encoder(groups: LatentGroups, device: "torch.device") -> "Callable[[Tensor], Tensor]":
    import torch

    from mi_audit.saes.encoding import Encoder

    needed = sorted({latent for group in groups.groups for latent in group})
    encoder = Encoder.of(groups.sae.config, weights_of(groups.sae).to(device), needed)
    column = {latent: number for number, latent in enumerate(needed)}
    columns = [torch.tensor([column[latent] for latent in group], device=device) for group in groups.groups]

    def encode(acts: "Tensor") -> "Tensor":
        latents = encoder(acts)
        parts = [latents[..., each] for each in columns]
        match groups.combine:
            case "sum":
                return torch.stack([part.sum(dim=-1) for part in parts], dim=-1)
            case "max":
                return torch.stack([part.amax(dim=-1) for part in parts], dim=-1)
            case "any":
                return torch.stack([(part != 0).any(dim=-1) for part in parts], dim=-1).to(torch.float32)

    return encode


@lru_cache(maxsize=2)
def weights_of(sae: SaeSpec) -> "SaeWeights":
    """The weights of an SAE, as they were when the plan was made.

    Raises:
        DetectorError: the files have changed since, or are damaged.
    """
    from mi_audit.saes.weights import read_weights

    try:
        digest = digest_of({name: sha256_of_file(sae.folder / name) for name in (CONFIG, WEIGHTS)})
    except OSError as error:
        raise DetectorError(f"{sae.name}: its files can't be read: {error.strerror}") from error
    if digest != sae.digest:
        raise DetectorError(f"{sae.name}: its files changed after the run was planned; run again to plan with what they hold now")
    return read_weights(sae.folder / WEIGHTS, sae.config)
