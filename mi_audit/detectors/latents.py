"""Latents of an SAE as a detector, beside random latents of the same SAE that fire as often."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from safetensors.numpy import save as to_safetensors

from mi_audit.detectors.activations import Activations
from mi_audit.detectors.baselines import LENGTH
from mi_audit.detectors.controls import SHUFFLED, stream
from mi_audit.detectors.files import CARD
from mi_audit.detectors.nulls import Draw
from mi_audit.detectors.readings import BASELINE, NULL, Arm, ReadingData
from mi_audit.detectors.threshold import calibrate
from mi_audit.engine.site import Encoding, Site
from mi_audit.errors import DetectorError
from mi_audit.plan.digest import Json
from mi_audit.plan.latents import LatentSpec, Pooling
from mi_audit.plan.places import At
from mi_audit.saes.latents import LatentGroups, pre_activation
from mi_audit.stats.checks import Bools, Floats
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.suite import Suite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RANDOM_LATENTS: Final = "random latents that fire as often"

NEAREST: Final = 400
"""Random latents are drawn, with replacement, from this many that fire most nearly as often, or all there are."""


@dataclass(frozen=True, eq=False)
class FittedLatents:
    """Scores what the engine made of activations with `groups`: the first group's number is the detector's, the others' are those of its random latents."""

    spec: LatentSpec
    model_root: str
    at: At
    groups: LatentGroups
    threshold: float | None
    card: Mapping[str, Json]

    @property
    def site(self) -> Site:
        """Where it reads, and what it makes of what it reads."""
        return Site(self.at, self.spec.tokens, self.groups)

    def score(self, vectors: Floats) -> Floats:
        """The scores [n] of what the engine read [n, groups]."""
        scores: Floats = vectors[:, 0]
        return scores

    def score_tokens(self, acts: Floats) -> Floats:
        """The scores [L] of the activations [L, width] of a whole prompt."""
        import torch

        from mi_audit.engine.reduction import encoded

        given, stem = torch.from_numpy(acts.astype(np.float32)), self.groups.stem
        made: dict[Encoding, Tensor] = {stem: stem.on(given.device)(given)} if stem is not None and stem.whole_prompt else {}
        (found,) = encoded(given, [self.groups], made)
        scores: Floats = found[:, 0].double().numpy()
        return scores

    @property
    def pooling(self) -> Pooling:
        """How the numbers of several tokens become that of their prompt."""
        return self.spec.pooling

    def differentiable(self, device: "torch.device") -> "Callable[[Tensor], Tensor]":
        """From activations [..., d_in] to the pre-activation [...] whose sign decides the score; gradients go through it."""
        return pre_activation(self.groups, device)

    def to_bytes(self) -> bytes:
        """A safetensors file: `latents` int64 [m], and of these the columns of the encoder `W_enc` float32 [d_in, m] and the rows of the decoder `W_dec`
        float32 [m, d_out], with the card as canonical JSON in its header."""
        from mi_audit.saes.latents import weights_of

        weights, latents = weights_of(self.spec.sae), list(self.spec.latents)
        header: dict[str, Json] = {
            "format": 1,
            "spec": self.spec.describe(),
            "spec_digest": self.spec.digest,
            "model_root": self.model_root,
            "at": self.at.describe(),
            "threshold": self.threshold,
            "card": dict(self.card),
        }
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        tensors = {
            "latents": np.array(latents, dtype=np.int64),
            "W_enc": np.ascontiguousarray(weights.W_enc[:, latents].numpy()),
            "W_dec": np.ascontiguousarray(weights.W_dec[latents].numpy()),
        }
        return to_safetensors(tensors, {CARD: text})


@dataclass(frozen=True, eq=False)
class LearnedLatents:
    """Latents with the thresholds of all groups [groups], calibrated by the detector's rule on its negatives. Nothing is refitted for their nulls."""

    spec: LatentSpec
    detector: FittedLatents
    thresholds: Floats | None
    draw: Draw
    curve = None

    @classmethod
    def learn(cls, spec: LatentSpec, root: str, at: At, groups: LatentGroups, negatives: Floats, draw: Draw) -> "LearnedLatents":
        """Calibrate on what was read of the negatives [m, groups].

        Raises:
            DetectorError: too few negatives.
        """
        try:
            thresholds = None if spec.threshold is None else calibrate(spec.threshold, negatives.T)
        except DetectorError as error:
            raise DetectorError(f"{spec.name}: {error}") from error
        card: dict[str, Json] = {"sae": spec.sae.digest, "config": spec.sae.config.describe(), "latents": list(spec.latents)}
        if spec.threshold is not None:
            card["threshold_rule"] = str(spec.threshold)
        return cls(spec, FittedLatents(spec, root, at, groups, None if thresholds is None else float(thresholds[0]), card), thresholds, draw)

    def null_arms(self, read: Activations, suite: Suite, reading_digest: str) -> tuple[Arm, ...]:
        """Its own scores held against shuffled labels, and random latents that fire as often."""
        labels: Bools = np.asarray(suite.labels(), dtype=np.bool_)
        drawn = Arm(NULL + RANDOM_LATENTS, read.vectors[:, 1:].T, None if self.thresholds is None else self.thresholds[1:])
        if suite.one_class():
            return (drawn,)
        shuffled = self.draw.labels_read(self.spec, labels, suite.groups(), reading_digest)
        values = np.repeat(self.detector.score(read.vectors)[None], len(shuffled), axis=0)
        thresholds = None if self.thresholds is None else np.repeat(self.thresholds[0], len(shuffled))
        return Arm(NULL + SHUFFLED, values, thresholds, shuffled), drawn

    def baseline_arms(self, prompts: Sequence[Prompt], read: Activations, embedded: Activations | None) -> tuple[Arm, ...]:
        """The number of tokens, as it is."""
        return (Arm(BASELINE + LENGTH, read.n_tokens[None].astype(np.float64)),)


def silent_null(reading: ReadingData) -> tuple[str, ...]:
    """Why the random latents of a reading are no control of it, if so: most of them give all of its prompts the same score, as latents do that never fire."""
    for arm in reading.of_kind(NULL + RANDOM_LATENTS):
        silent = int((arm.values.max(axis=1) == arm.values.min(axis=1)).sum())
        if 2 * silent > len(arm.values):
            return (f"{silent} of the {len(arm.values)} random latents that it is held against say nothing on these prompts, so they control nothing",)
    return ()


def groups_of(spec: LatentSpec, firing: Floats, draw: Draw) -> LatentGroups:
    """The detector's latents and, for its null, `draw.draws` groups of as many random ones; each fires about as often as the one that it stands for.

    `firing` [d_sae] is the share of tokens at which each latent fires.

    Raises:
        DetectorError: the SAE has no latents besides.
    """
    own, random = set(spec.latents), stream(draw.seed, RANDOM_LATENTS, spec.digest)
    others = np.array([latent for latent in range(len(firing)) if latent not in own])
    if not len(others):
        raise DetectorError(f"{spec.name}: it takes all the latents of {spec.sae.name}, so there are none to hold it against")
    columns = []
    for latent in spec.latents:
        nearest = others[np.argsort(np.abs(firing[others] - firing[latent]), kind="stable")][:NEAREST]
        columns.append(random.choice(nearest, draw.draws))
    drawn = tuple(tuple(int(latent) for latent in group) for group in zip(*columns, strict=True))
    return LatentGroups(spec.sae, (spec.latents, *drawn), spec.combine, spec.pooling)
