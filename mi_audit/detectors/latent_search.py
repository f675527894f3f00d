"""Search an SAE for the latents that separate a suite's labels, and say of each what it is worth as evidence."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from mi_audit.detectors.controls import stream
from mi_audit.detectors.discovery import Candidates, Confirmation, aurocs, confirm, discover, rank
from mi_audit.detectors.latent_flags import Firings, absorbed_by, near_duplicates, tracks
from mi_audit.detectors.latents import NEAREST
from mi_audit.detectors.linear import DifferenceOfMeans
from mi_audit.detectors.sae_checks import SaeChecks, SaeQuality, require_match
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
from mi_audit.suites.suite import Suite

RANDOM_LATENTS: Final = 199
"""Latents that fire as often, drawn at random, against which a candidate is held."""
LOOKED_AT: Final = 64
"""Prompts whose every token is looked at for what a latent tracks."""
DENSE: Final = 0.1


@dataclass(frozen=True)
class FoundLatent:
    """A latent that separates the labels of the discovery prompts.

    Attributes:
        latent: its number.
        found_auroc, q: on the discovery prompts, and the false discovery rate at which it is in.
        auroc, p: on the held-out prompts, and its rank among shuffled labels.
        confirmed: whether p holds up among all candidates (Holm).
        random_p: its rank among random latents that fire as often, on the held-out prompts.
        over_random_sae: its held-out AUROC less that of the best latent found in the same way in an SAE whose encoder points elsewhere at random.
        over_probe: less that of a difference-of-means probe on the raw activations, fitted to the discovery prompts.
        duplicates: near-duplicates: the feature is split over them.
        absorbed_by: relatives that fire where it falls silent.
        tracks: what it tracks besides the labels, in words.
        weak: why it is no evidence; empty where it is.
    """

    latent: int
    found_auroc: float
    q: float
    auroc: float
    p: float
    confirmed: bool
    random_p: float
    over_random_sae: Estimate
    over_probe: Estimate
    duplicates: tuple[int, ...]
    absorbed_by: tuple[int, ...]
    tracks: tuple[str, ...]
    weak: tuple[str, ...]


@dataclass(frozen=True)
class FoundLatents:
    """What a search found, best first.

    Attributes:
        latents: the candidates.
        alive: latents that fire on any discovery prompt, of all that were searched.
        separate: how many separate the labels there; the candidates are the best of them.
        discovered_on, confirmed_on: prompts of the two halves.
        probe_auroc, random_sae_auroc: held-out, of what the candidates are held against.
        quality: of the SAE on the suite.
    """

    latents: tuple[FoundLatent, ...]
    alive: int
    separate: int
    discovered_on: int
    confirmed_on: int
    probe_auroc: float
    random_sae_auroc: float
    quality: SaeQuality

    @property
    def evidence(self) -> tuple[int, ...]:
        """The latents that are worth something as evidence, best first."""
        return tuple(each.latent for each in self.latents if not each.weak)


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
    """Rank an SAE's latents by how they separate a suite's labels on its train and calibration splits, and confirm them on its test split.

    Args:
        model: the model under audit.
        sae: the SAE.
        suite: labelled, whole: it is split by its groups.
        tokens, pooling: as of a latent detector.
        rate: of false discoveries among the candidates, at most.
        alpha: the probability that any of them is wrongly confirmed, and the one-sided level of the comparisons.
        most: candidates that go on to be confirmed.
        seed: of every random step.
        cache: for what the SAE's checks read.
        progress: hears of the passes.

    Raises:
        DetectorError: the SAE does not match the model, or a half holds one class only.
        SuiteError: the suite has no labels, or is a split already.
        HookPointError, PromptError: as the passes.
    """
    require_match(sae, model)
    checks = SaeChecks(model, alpha, seed, cache)
    at = sae.at.in_model(model.n_layers)
    own, random_sae, raw = (Site(at, tokens, encoding) for encoding in (EveryLatent(sae, pooling), EveryLatent(sae, pooling, seed), None))
    held = suite["test"]
    ids = {prompt.id for prompt in held}
    rows = np.array([prompt.id in ids for prompt in suite.prompts])
    read = capture(model, suite.prompts, (own, random_sae, raw), progress=progress)
    labels: Bools = np.asarray(suite.labels(), dtype=np.bool_)
    groups = np.asarray(suite.groups())
    half = _Half(labels, groups, rows)
    values = read.vectors(own).astype(np.float64)
    found = half.discover(values, rate, stream(seed, "discovery", sae.digest, suite.digest))
    separate = len(found.columns)
    found = Candidates(found.columns[:most], found.aurocs[:most], found.q[:most])
    probe = _probe(read.vectors(raw).astype(np.float64), half)
    other = read.vectors(random_sae).astype(np.float64)
    best_random = half.best(other)
    confirmed = half.confirm(values[:, found.columns], alpha, stream(seed, "confirmation", sae.digest, suite.digest))
    firing, quality = checks.firing(sae), checks.quality(sae, suite)
    looked = _Looked(model, sae, suite, values, half, firing, quality, read.n_tokens.astype(np.float64), cache)
    return FoundLatents(
        latents=tuple(_judged(looked, found, confirmed, number, other[:, best_random], probe, alpha, seed) for number in range(len(found.columns))),
        alive=int((values[~rows] != 0).any(axis=0).sum()),
        separate=separate,
        discovered_on=int((~rows).sum()),
        confirmed_on=int(rows.sum()),
        probe_auroc=half.held_auroc(probe),
        random_sae_auroc=half.held_auroc(other[:, best_random]),
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
        suite: Suite,
        values: Floats,
        half: _Half,
        firing: Floats,
        quality: SaeQuality,
        n_tokens: Floats,
        cache: ActivationCache | None,
    ) -> None:
        self.values, self.half, self.firing, self.quality, self.n_tokens = values, half, firing, quality, n_tokens
        rows = weights_of(sae).W_dec.numpy().astype(np.float64)
        self._decoder = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        step = max(1, len(suite) // LOOKED_AT)
        encoded = list(encode_all(model, suite.prompts[::step][:LOOKED_AT], cache))
        self._prompts, self._sae = every_token(model, encoded, sae.at.in_model(model.n_layers), cache=cache), sae

    def cosines(self, latent: int) -> Floats:
        """Of its decoder row with all [d_sae]."""
        found: Floats = self._decoder @ self._decoder[latent]
        return found

    def firings(self, latent: int) -> Firings:
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


def _probe(acts: Floats, half: _Half) -> Floats:
    """The scores [n] of a difference-of-means probe on raw activations [n, d], fitted to the discovery prompts."""
    fitted = DifferenceOfMeans(acts[~half.held]).fit(half.labels[None, ~half.held])
    scores: Floats = fitted.scores(acts)[0]
    return scores


def _judged(
    looked: _Looked, found: Candidates, confirmed: Confirmation, number: int, random_sae: Floats, probe: Floats, alpha: float, seed: int
) -> FoundLatent:
    latent, half, values = int(found.columns[number]), looked.half, looked.values
    cosines = looked.cosines(latent)
    nearest = np.argsort(np.abs(looked.firing - looked.firing[latent]), kind="stable")
    drawn = stream(seed, "random latents", str(latent)).choice(nearest[nearest != latent][:NEAREST], RANDOM_LATENTS)
    random_p = rank(float(confirmed.aurocs[number]), aurocs(values[half.held][:, drawn], half.labels[None, half.held])[0])
    over_random, over_probe = half.difference(values[:, latent], random_sae, alpha), half.difference(values[:, latent], probe, alpha)
    said = tracks(values[:, latent], half.labels, looked.n_tokens, looked.firings(latent), bool(looked.firing[latent] > DENSE))
    weak = list(looked.quality.below)
    if not confirmed.confirmed[number]:
        weak.append("not confirmed on the held-out prompts")
    if random_p > alpha:
        weak.append("no better than random latents that fire as often")
    if over_random.low is None or not over_random.low > 0 or over_random.undecided:
        weak.append("not shown to be better than the best latent of an SAE whose encoder is random")
    return FoundLatent(
        latent=latent,
        found_auroc=float(found.aurocs[number]),
        q=float(found.q[number]),
        auroc=float(confirmed.aurocs[number]),
        p=float(confirmed.p[number]),
        confirmed=bool(confirmed.confirmed[number]),
        random_p=random_p,
        over_random_sae=over_random,
        over_probe=over_probe,
        duplicates=near_duplicates(latent, values[~half.held], cosines),
        absorbed_by=absorbed_by(latent, values[~half.held], half.labels[~half.held], cosines),
        tracks=said,
        weak=tuple(weak),
    )
