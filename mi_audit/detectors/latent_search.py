"""Search an SAE for the latents that separate a suite's labels, and say of each what it is worth as evidence."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from mi_audit.detectors.controls import stream
from mi_audit.detectors.discovery import Candidates
from mi_audit.detectors.found_latents import FoundGroup, FoundLatent, FoundLatents
from mi_audit.detectors.latent_flags import Firings, absorbed_by, near_duplicates, tracks
from mi_audit.detectors.latent_judging import Halves, Judge
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
from mi_audit.stats.checks import Floats
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.suite import Suite

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
    half = Halves(np.array([*train.labels(), *held.labels()], dtype=np.bool_), np.array([*train.groups(), *held.groups()]), rows)
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
    judge = Judge(half, values, firing, quality.below, probe, alpha, seed)
    looked = _Looked(model, sae, prompts, values, half, firing, read.n_tokens.astype(np.float64), cache)
    return FoundLatents(
        latents=tuple(
            FoundLatent(
                latent=int(latent),
                q=float(found.q[number]),
                duplicates=looked.duplicates(int(latent)),
                absorbed_by=looked.absorbed_by(int(latent)),
                tracks=looked.tracks(int(latent)),
                **vars(judge.worth((int(latent),), float(found.aurocs[number]), confirmed, number, best_random)),
            )
            for number, latent in enumerate(found.columns)
        ),
        group=FoundGroup(
            latents=group,
            random_sae_auroc=half.held_auroc(against),
            **vars(judge.worth(group, half.found_auroc(summed[:, 0]), confirmed, len(found.columns), against)),
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


class _Looked:
    """What is looked at besides the labels, for all candidates."""

    def __init__(
        self,
        model: AuditedModel,
        sae: SaeSpec,
        prompts: Sequence[Prompt],
        values: Floats,
        half: Halves,
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

    def duplicates(self, latent: int) -> tuple[int, ...]:
        """See `FoundLatent`."""
        return near_duplicates(latent, self._values[~self._half.held], self._cosines(latent))

    def absorbed_by(self, latent: int) -> tuple[int, ...]:
        """See `FoundLatent`."""
        return absorbed_by(latent, self._values[~self._half.held], self._half.labels[~self._half.held], self._cosines(latent))

    def tracks(self, latent: int) -> tuple[str, ...]:
        """See `FoundLatent`."""
        return tracks(self._values[:, latent], self._half.labels, self._n_tokens, self._firings(latent), bool(self._firing[latent] > DENSE))

    def _cosines(self, latent: int) -> Floats:
        """Of its decoder row with all [d_sae]."""
        found: Floats = self._decoder @ self._decoder[latent]
        return found

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


def _probe(acts: Floats, half: Halves) -> Floats:
    """The scores [n] of a difference-of-means probe on raw activations [n, d], fitted to the discovery prompts."""
    fitted = DifferenceOfMeans(acts[~half.held]).fit(half.labels[None, ~half.held])
    scores: Floats = fitted.scores(acts)[0]
    return scores
