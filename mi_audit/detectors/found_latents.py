"""What a search of an SAE found, and what it is worth as evidence."""

from dataclasses import dataclass

from mi_audit.detectors.sae_checks import SaeQuality
from mi_audit.stats.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class Worth:
    """How scores that were found on the discovery prompts do on the held-out ones, and against what finds nothing.

    Attributes:
        found_auroc: on the discovery prompts.
        auroc, p: on the held-out prompts, and its rank among shuffled labels.
        confirmed: whether p holds up among all that are confirmed (Holm).
        random_p: its rank among random latents that fire as often, on the held-out prompts.
        over_random_sae: its held-out AUROC less that of the best found in the same way in an SAE whose encoder points elsewhere at random.
        over_probe: less that of a difference-of-means probe on the raw activations, fitted to the discovery prompts.
        weak: why it is no evidence; empty where it is.
    """

    found_auroc: float
    auroc: float
    p: float
    confirmed: bool
    random_p: float
    over_random_sae: Estimate
    over_probe: Estimate
    weak: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FoundLatent(Worth):
    """A latent that separates the labels of the discovery prompts.

    Attributes:
        latent: its number.
        q: the false discovery rate at which it is in.
        duplicates: near-duplicates: the feature is split over them.
        absorbed_by: relatives that fire where it falls silent.
        tracks: what it tracks besides the labels, in words.
    """

    latent: int
    q: float
    duplicates: tuple[int, ...]
    absorbed_by: tuple[int, ...]
    tracks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FoundGroup(Worth):
    """Latents whose sum separates the labels of the discovery prompts better than any of them alone.

    Attributes:
        latents: their numbers, the most useful first.
        random_sae_auroc: held-out, of the group found in the same way in an SAE whose encoder points elsewhere at random.
    """

    latents: tuple[int, ...]
    random_sae_auroc: float


@dataclass(frozen=True)
class FoundLatents:
    """What a search found, best first by the discovery prompts.

    To choose among them by what they do on the held-out prompts, `evidence` among it, uses these up: no claim may then be made on them.

    Attributes:
        latents: the candidates.
        group: the best group; None where one latent does as well, or where the highest of several tokens is read.
        alive: latents that fire on any discovery prompt, of all that were searched.
        separate: how many separate the labels there; the candidates are the best of them.
        discovered_on, confirmed_on: prompts of the two halves.
        probe_auroc, random_sae_auroc: held-out, of what the candidates are held against.
        quality: of the SAE on the suite.
    """

    latents: tuple[FoundLatent, ...]
    group: FoundGroup | None
    alive: int
    separate: int
    discovered_on: int
    confirmed_on: int
    probe_auroc: float
    random_sae_auroc: float
    quality: SaeQuality

    @property
    def evidence(self) -> tuple[int, ...]:
        """The single latents that are worth something as evidence, best first by the discovery prompts."""
        return tuple(each.latent for each in self.latents if not each.weak)
