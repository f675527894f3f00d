"""What latents that were found are worth as evidence: on the held-out half, and against what finds nothing. No torch."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from mi_audit.detectors.controls import stream
from mi_audit.detectors.discovery import Candidates, Confirmation, aurocs, confirm, discover, rank
from mi_audit.detectors.found_latents import Worth
from mi_audit.detectors.latent_groups import grow
from mi_audit.detectors.latents import NEAREST
from mi_audit.stats.auroc import auroc_difference
from mi_audit.stats.checks import Bools, Floats
from mi_audit.stats.estimate import Estimate

RANDOM_LATENTS: Final = 199
"""Latents that fire as often, drawn at random, against which a candidate is held."""


@dataclass(frozen=True, eq=False)
class Halves:
    """Labels and groups of all prompts [n], and which of them are held out."""

    labels: Bools
    groups: "np.ndarray[tuple[int], np.dtype[np.str_]]"
    held: Bools

    def discover(self, values: Floats, rate: float, random: np.random.Generator) -> Candidates:
        """What separates the labels of the discovery prompts; see `discovery.discover`."""
        return discover(values[~self.held], self.labels[~self.held], tuple(self.groups[~self.held].tolist()), rate=rate, random=random)

    def confirm(self, values: Floats, alpha: float, random: np.random.Generator) -> Confirmation:
        """Candidates held against shuffled labels on the held-out prompts; see `discovery.confirm`."""
        return confirm(values[self.held], self.labels[self.held], tuple(self.groups[self.held].tolist()), alpha=alpha, random=random)

    def best(self, values: Floats) -> int:
        """The column that is highest where labels are true among the discovery prompts; the first where nothing fires."""
        return int(np.argmax(aurocs(values[~self.held], self.labels[None, ~self.held])[0]))

    def grow(self, values: Floats, random: np.random.Generator) -> tuple[int, ...]:
        """The group that separates the labels of the discovery prompts; see `latent_groups.grow`."""
        return grow(values[~self.held], self.labels[~self.held], self.groups[~self.held], random)

    def found_auroc(self, scores: Floats) -> float:
        """On the discovery prompts."""
        return float(aurocs(scores[~self.held, None], self.labels[None, ~self.held])[0, 0])

    def held_auroc(self, scores: Floats) -> float:
        """On the held-out prompts."""
        return float(aurocs(scores[self.held, None], self.labels[None, self.held])[0, 0])

    def difference(self, scores: Floats, others: Floats, alpha: float) -> Estimate:
        """The AUROC of scores less that of others, on the held-out prompts."""
        return auroc_difference(scores[self.held], others[self.held], self.labels[self.held], self.groups[self.held], alpha=alpha)


@dataclass(frozen=True, eq=False)
class Judge:
    """Holds what was found against what finds nothing. `below`: the floors that the SAE does not reach."""

    half: Halves
    values: Floats
    firing: Floats
    below: tuple[str, ...]
    probe: Floats
    alpha: float
    seed: int

    def worth(self, latents: tuple[int, ...], found_auroc: float, confirmed: Confirmation, number: int, random_sae: Floats) -> Worth:
        """Of the sum of latents, which stands at `number` among what was confirmed; `random_sae` [n] are the scores of what a random encoder has to offer."""
        half, scores = self.half, self.values[:, latents].sum(axis=1)
        auroc, is_confirmed = float(confirmed.aurocs[number]), bool(confirmed.confirmed[number])
        drawn = self._drawn(latents)[half.held]
        random_p, silent = rank(auroc, aurocs(drawn, half.labels[None, half.held])[0]), int((drawn.max(axis=0) == drawn.min(axis=0)).sum())
        over_random = half.difference(scores, random_sae, self.alpha)
        weak = list(self.below)
        if not is_confirmed:
            weak.append("not confirmed on the held-out prompts")
        if random_p > self.alpha:
            weak.append("no better than random latents that fire as often")
        if 2 * silent > RANDOM_LATENTS:
            weak.append(f"{silent} of the {RANDOM_LATENTS} random latents that it is held against say nothing on the held-out prompts, so they control nothing")
        if over_random.low is None or not over_random.low > 0 or over_random.undecided:
            weak.append("not shown to be better than the best of an SAE whose encoder is random")
        return Worth(
            found_auroc=found_auroc,
            auroc=auroc,
            p=float(confirmed.p[number]),
            confirmed=is_confirmed,
            random_p=random_p,
            over_random_sae=over_random,
            over_probe=half.difference(scores, self.probe, self.alpha),
            weak=tuple(weak),
        )

    def _drawn(self, latents: tuple[int, ...]) -> Floats:
        """Sums [n, RANDOM_LATENTS] of as many latents, drawn at random; each fires about as often as the one that it stands for."""
        random = stream(self.seed, "random latents", ",".join(map(str, latents)))
        drawn = np.zeros((len(self.values), RANDOM_LATENTS))
        for latent in latents:
            nearest = np.argsort(np.abs(self.firing - self.firing[latent]), kind="stable")
            drawn += self.values[:, random.choice(nearest[~np.isin(nearest, latents)][:NEAREST], RANDOM_LATENTS)]
        return drawn
