"""Latents of an SAE as the engine reads them, token by token, on the way of a forward pass. No torch before something has to be encoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from mi_audit.errors import DetectorError
from mi_audit.plan.digest import Json, digest_of, sha256_of_file
from mi_audit.plan.latents import Combine, Pooling
from mi_audit.plan.saes import CONFIG, WEIGHTS, SaeSpec
from mi_audit.saes.every_latent import EveryLatent, computed_by

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mi_audit.saes.encoding import Encoder
    from mi_audit.saes.weights import SaeWeights


@dataclass(frozen=True, eq=False)
class LatentGroups:
    """Groups of equally many latents of one SAE, m of them: at each token the latents of a group become one number. Equal where `key` is."""

    sae: SaeSpec
    groups: tuple[tuple[int, ...], ...]
    combine: Combine
    pooling: Pooling

    @cached_property
    def key(self) -> str:
        """Digest of the SAE's files, the latents and how they become one number."""
        groups: list[Json] = [list(group) for group in self.groups]
        described: dict[str, Json] = {"sae": self.sae.digest, "config": self.sae.config.describe(), "groups": groups}
        return digest_of(described | {"combine": self.combine, "pooling": self.pooling} | computed_by(self.sae))[:40]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LatentGroups) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def width(self) -> int:
        """m."""
        return len(self.groups)

    whole_prompt = False

    @property
    def stem(self) -> EveryLatent | None:
        """All latents, where they compete and none can be had without the others."""
        return None if self.sae.config.selectable else EveryLatent(self.sae, "mean")

    def on(self, device: "torch.device") -> "Callable[[Tensor], Tensor]":
        """From activations [..., d_in], or all latents [..., d_sae] where they compete, to the groups' numbers [..., m].

        Raises:
            DetectorError: the SAE's files have changed since the plan was made, or are damaged.
        """
        return _encoder(self, device)


@lru_cache(maxsize=64)
def _encoder(groups: LatentGroups, device: "torch.device") -> "Callable[[Tensor], Tensor]":
    if groups.stem is not None:
        places = _places(groups.groups, device)
        return lambda latents: combined(latents[..., places], groups.combine)
    encoder, columns = _columns(groups, device)
    return lambda acts: combined(encoder(acts)[..., columns], groups.combine)


def pre_activation(groups: LatentGroups, device: "torch.device") -> "Callable[[Tensor], Tensor]":
    """From activations [..., d_in] to the first group's number [...], of pre-activations: what fires if it is above a threshold, through which gradients go.

    `any` is that of the highest. Raises DetectorError as `LatentGroups.on`.
    """
    encoder, columns = _columns(LatentGroups(groups.sae, groups.groups[:1], groups.combine, groups.pooling), device)
    combine: Combine = "max" if groups.combine == "any" else groups.combine
    return lambda acts: combined(encoder.pre(acts)[..., columns[0]], combine)


def combined(latents: "Tensor", combine: Combine) -> "Tensor":
    """The latents [..., m] of a group as one number [...]."""
    match combine:
        case "sum":
            return latents.sum(dim=-1)
        case "max":
            return latents.amax(dim=-1)
        case "any":
            return (latents != 0).any(dim=-1).float()


def _columns(groups: LatentGroups, device: "torch.device") -> "tuple[Encoder, Tensor]":
    """An encoder of the latents that are needed, and where those of each group are among them."""
    from mi_audit.saes.encoding import Encoder

    needed = sorted({latent for group in groups.groups for latent in group})
    column = {latent: number for number, latent in enumerate(needed)}
    encoder = Encoder.of(groups.sae.config, weights_of(groups.sae).to(device), needed)
    return encoder, _places([[column[latent] for latent in group] for group in groups.groups], device)


def _places(groups: Sequence[Sequence[int]], device: "torch.device") -> "Tensor":
    """The latents of groups of equal size, [m, size] int64."""
    import torch

    return torch.tensor([list(group) for group in groups], device=device)


@lru_cache(maxsize=2)
def weights_of(sae: SaeSpec) -> "SaeWeights":
    """The weights of an SAE, as they were when the plan was made.

    Raises:
        DetectorError: the files have changed since, or are damaged.
    """
    import torch

    from mi_audit.saes.weights import read_weights

    try:
        digest = digest_of({name: sha256_of_file(sae.folder / name) for name in (CONFIG, WEIGHTS)})
    except OSError as error:
        raise DetectorError(f"{sae.name}: its files can't be read: {error.strerror}") from error
    if digest != sae.digest:
        raise DetectorError(f"{sae.name}: its files changed after the run was planned; run again to plan with what they hold now")
    with torch.inference_mode(False):  # it may be a pass that asks first, and gradients go through the same weights later
        return read_weights(sae.folder / WEIGHTS, sae.config)
