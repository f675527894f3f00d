"""Search an SAE for the latents that separate a suite's labels, and say of each what it is worth as evidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypedDict

import numpy as np

from mi_audit.detectors.controls import stream
from mi_audit.detectors.discovery import Candidates, Confirmation, aurocs, confirm, discover, rank
from mi_audit.detectors.found_latents import FoundGroup, FoundLatent, FoundLatents
from mi_audit.detectors.latent_flags import Firings, absorbed_by, near_duplicates, tracks
from mi_audit.detectors.latent_groups import grow
from mi_audit.detectors.latents import NEAREST
from mi_audit.detectors.linear import DifferenceOfMeans
from mi_audit.detectors.sae_checks import SaeChecks, require_match
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.capture import capture
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.every_token import every_token
from mi_audit.engine.progress import Progress
from mi_audit.engine.site import Site
from mi_audit.model.audited import AuditedModel
from mi_audit.plan.latents import Pooling
from mi_audit.plan.places import Tokens
from mi_audit.plan.saes import SaeSpec
from mi_audit.saes.every_latent import EveryLatent
from mi_audit.saes.latents import weights_of
from mi_audit.stats.auroc import auroc_difference
from mi_audit.stats.checks import Bools, Floats
from mi_audit.stats.estimate import Estimate
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.suite import Suite

RANDOM_LATENTS: Final = 199
"""Latents that fire as often, drawn at random, against which a candidate is held."""
LOOKED_AT: Final = 64
"""Prompts whose every token is looked at for what a latent tracks."""
DENSE: Final = 0.1


def search(
    model: AuditedModel,
    sae: SaeSpec,
    suite: Suite,
    *,
    tokens: Tokens,
    pooling: Pooling,
    rate: float,
    alpha: float,
    most: int,
    seed: int,
    cache: ActivationCache | None = None,
    progress: Progress | None = None,
) -> FoundLatents:
    """Rank an SAE's latents by how they separate a suite's labels on its train split, and confirm them on its test split.

    Args:
        model: the model under audit.
        sae: the SAE.
        suite: labelled, whole: it is split by its groups.
        tokens, pooling: as of a latent detector.
        rate: of false discoveries among the candidates, at most.
        alpha: the probability that any of them is wrongly confirmed, and the one-sided level of the comparisons.
        most: candidates that go on to be confirmed.
        seed: of every random step.
        cache: where what was read before is looked up and kept.
        progress: hears of the passes.

    Raises:
        DetectorError: the SAE does not match the model, or a half holds one class only.
        SuiteError: the suite has no labels, or is a split already.
        HookPointError, PromptError: as the passes.
    """
    require_match(sae, model)
    checks = SaeChecks(model, alpha, seed, cache, progress)
    at = sae.at.in_model(model.n_layers)
    own, random_sae, raw = (Site(at, tokens, encoding) for encoding in (EveryLatent(sae, pooling), EveryLatent(sae, pooling, seed), None))
    train, held = suite["train"], suite["test"]
    prompts = (*train.prompts, *held.prompts)
    rows = np.arange(len(prompts)) >= len(train)
    read = capture(model, prompts, (own, random_sae, raw), progress=progress, cache=cache)
    if cache is not None:
        cache.bound()
    half = _Half(np.array([*train.labels(), *held.labels()], dtype=np.bool_), np.array([*train.groups(), *held.groups()]), rows)
    values = read.vectors(own).astype(np.float64)
    found = half.discover(values, rate, stream(seed, "discovery", sae.digest, suite.digest))
    separate = len(found.columns)
    found = Candidates(found.columns[:most], found.aurocs[:most], found.q[:most])
    probe = _probe(read.vectors(raw).astype(np.float64), half)
    other = read.vectors(random_sae).astype(np.float64)
    group = half.grow(values, stream(seed, "group", sae.digest, suite.digest))
    summed = values[:, group].sum(axis=1, keepdims=True)
    against = other[:, half.grow(other, stream(seed, "random group", sae.digest, suite.digest))].sum(axis=1)
    best_random = other[:, half.best(other)]
    several = len(group) > 1 and (pooling == "mean" or tokens.kind == "last")  # of several tokens, the sum of each latent's highest is no detector's score
    confirmed = half.confirm(np.hstack([values[:, found.columns], summed[:, : int(several)]]), alpha, stream(seed, "confirmation", sae.digest, suite.digest))
    firing, quality = checks.firing(sae), checks.quality(sae, suite)
    judge = _Judge(half, values, firing, quality.below, probe, alpha, seed)
    looked = _Looked(model, sae, prompts, values, half, firing, read.n_tokens.astype(np.float64), cache)
    return FoundLatents(
        latents=tuple(
            FoundLatent(
                latent=int(latent),
                q=float(found.q[number]),
                **looked.flags(int(latent)),
                **judge.worth((int(latent),), float(found.aurocs[number]), confirmed, number, best_random),
            )
            for number, latent in enumerate(found.columns)
        ),
        group=FoundGroup(
            latents=group,
            random_sae_auroc=half.held_auroc(against),
            **judge.worth(group, half.found_auroc(summed[:, 0]), confirmed, len(found.columns), against),
        )
        if several
        else None,
        alive=int((values[~rows] != 0).any(axis=0).sum()),
        separate=separate,
        discovered_on=int((~rows).sum()),
        confirmed_on=int(rows.sum()),
        probe_auroc=half.held_auroc(probe),
        random_sae_auroc=half.held_auroc(best_random),
        quality=quality,
    )


@dataclass(frozen=True, eq=False)
class _Half:
    """Labels and groups of all prompts [n], and which of them are held out."""

    labels: Bools
    groups: "np.ndarray[tuple[int], np.dtype[np.str_]]"
    held: Bools

    def discover(self, values: Floats, rate: float, random: np.random.Generator) -> Candidates:
        return discover(values[~self.held], self.labels[~self.held], tuple(self.groups[~self.held].tolist()), rate=rate, random=random)

    def confirm(self, values: Floats, alpha: float, random: np.random.Generator) -> Confirmation:
        return confirm(values[self.held], self.labels[self.held], tuple(self.groups[self.held].tolist()), alpha=alpha, random=random)

    def best(self, values: Floats) -> int:
        """The column that is highest where labels are true among the discovery prompts; the first where nothing fires."""
        return int(np.argmax(aurocs(values[~self.held], self.labels[None, ~self.held])[0]))

    def grow(self, values: Floats, random: np.random.Generator) -> tuple[int, ...]:
        return grow(values[~self.held], self.labels[~self.held], self.groups[~self.held], random)

    def found_auroc(self, scores: Floats) -> float:
        return float(aurocs(scores[~self.held, None], self.labels[None, ~self.held])[0, 0])

    def held_auroc(self, scores: Floats) -> float:
        return float(aurocs(scores[self.held, None], self.labels[None, self.held])[0, 0])

    def difference(self, scores: Floats, others: Floats, alpha: float) -> Estimate:
        return auroc_difference(scores[self.held], others[self.held], self.labels[self.held], self.groups[self.held], alpha=alpha)


class _Looked:
    """What is looked at besides the labels, for all candidates."""

    def __init__(
        self,
        model: AuditedModel,
        sae: SaeSpec,
        prompts: Sequence[Prompt],
        values: Floats,
        half: _Half,
        firing: Floats,
        n_tokens: Floats,
        cache: ActivationCache | None,
    ) -> None:
        self._values, self._half, self._firing, self._n_tokens = values, half, firing, n_tokens
        rows = weights_of(sae).W_dec.numpy().astype(np.float64)
        self._decoder = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        step = max(1, len(prompts) // LOOKED_AT)
        encoded = list(encode_all(model, prompts[::step][:LOOKED_AT], cache))
        self._prompts, self._sae = every_token(model, encoded, sae.at.in_model(model.n_layers), cache=cache), sae

    def flags(self, latent: int) -> "_Flags":
        """What speaks against it: splitting, absorption, and what it tracks besides."""
        cosines: Floats = self._decoder @ self._decoder[latent]
        own, found, labels = self._values[:, latent], self._values[~self._half.held], self._half.labels
        return {
            "duplicates": near_duplicates(latent, found, cosines),
            "absorbed_by": absorbed_by(latent, found, labels[~self._half.held], cosines),
            "tracks": tracks(own, labels, self._n_tokens, self._firings(latent), bool(self._firing[latent] > DENSE)),
        }

    def _firings(self, latent: int) -> Firings:
        """Where it fires in the prompts that are looked at, attention sinks left out."""
        import torch

        from mi_audit.saes.encoding import Encoder

        encode = Encoder.of(self._sae.config, weights_of(self._sae), [latent])
        positions, ids = [], []
        for prompt in self._prompts:
            fires = (encode(torch.from_numpy(prompt.activations))[:, 0].numpy() != 0) & ~prompt.sinks
            positions.append(np.flatnonzero(fires))
            ids.append(np.asarray(prompt.ids, dtype=np.int64)[fires])
        return Firings(np.concatenate(positions), np.concatenate(ids))


class _Flags(TypedDict):
    duplicates: tuple[int, ...]
    absorbed_by: tuple[int, ...]
    tracks: tuple[str, ...]


class _Worth(TypedDict):
    found_auroc: float
    auroc: float
    p: float
    confirmed: bool
    random_p: float
    over_random_sae: Estimate
    over_probe: Estimate
    weak: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Judge:
    """Holds what was found against what finds nothing. `below`: the floors that the SAE does not reach."""

    half: _Half
    values: Floats
    firing: Floats
    below: tuple[str, ...]
    probe: Floats
    alpha: float
    seed: int

    def worth(self, latents: tuple[int, ...], found_auroc: float, confirmed: Confirmation, number: int, random_sae: Floats) -> _Worth:
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
        return {
            "found_auroc": found_auroc,
            "auroc": auroc,
            "p": float(confirmed.p[number]),
            "confirmed": is_confirmed,
            "random_p": random_p,
            "over_random_sae": over_random,
            "over_probe": half.difference(scores, self.probe, self.alpha),
            "weak": tuple(weak),
        }

    def _drawn(self, latents: tuple[int, ...]) -> Floats:
        """Sums [n, RANDOM_LATENTS] of as many latents, drawn at random; each fires about as often as the one that it stands for."""
        random = stream(self.seed, "random latents", ",".join(map(str, latents)))
        drawn = np.zeros((len(self.values), RANDOM_LATENTS))
        for latent in latents:
            nearest = np.argsort(np.abs(self.firing - self.firing[latent]), kind="stable")
            drawn += self.values[:, random.choice(nearest[~np.isin(nearest, latents)][:NEAREST], RANDOM_LATENTS)]
        return drawn


def _probe(acts: Floats, half: _Half) -> Floats:
    """The scores [n] of a difference-of-means probe on raw activations [n, d], fitted to the discovery prompts."""
    fitted = DifferenceOfMeans(acts[~half.held]).fit(half.labels[None, ~half.held])
    scores: Floats = fitted.scores(acts)[0]
    return scores
