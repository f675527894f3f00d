"""What is pushed on: from a learned detector to vectors, or to latents with their highest values, and the same where there is nothing to find."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from mi_audit.detectors.controls import ISOTROPIC, RANDOM, SHUFFLED, random_directions, stream
from mi_audit.detectors.latents import RANDOM_LATENTS, LearnedLatents
from mi_audit.detectors.learned import LearnedDirection, LearnedProbe, labels_of
from mi_audit.errors import DetectorError
from mi_audit.plan.places import At
from mi_audit.plan.saes import SaeSpec
from mi_audit.plan.steering import SteerSpec, Unit
from mi_audit.stats.checks import Floats
from mi_audit.stats.controls import draws_needed

Latents = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Vectors:
    """What a strength of 1 adds at a hook point: `own` [width], and for each null draws [B, width] of equal length; with the unit "norm" no length counts."""

    at: At
    own: Floats
    nulls: Mapping[str, Floats]

    @property
    def length(self) -> float:
        """Of what is added."""
        return float(np.linalg.norm(self.own))


@dataclass(frozen=True, eq=False)
class Clamps:
    """Latents of an SAE with what each is set to at a strength of 1: `own`, with their `highest` values [m] on a corpus; for each null, draws of as many
    others, set to the same values."""

    at: At
    sae: SaeSpec
    own: Latents
    highest: Floats
    nulls: Mapping[str, tuple[Latents, ...]]

    @property
    def length(self) -> float:
        """The highest values, added up."""
        return float(self.highest.sum())


Handle = Vectors | Clamps


def vectors_of(spec: SteerSpec, learned: LearnedProbe | LearnedDirection, acts: Floats | None, alpha: float, seed: int) -> Vectors:
    """The vectors of a fitted detector or of a direction.

    Of the nulls of a fitted detector there are as many draws as alpha needs: its own method on shuffled labels, and directions with the covariance of the
    fitted activations within the classes. A direction that was found elsewhere has the latter, of the activations `acts` [n, width] of the prompts steered; and
    isotropic ones, since nothing says that it lies where these activations vary: along the others a model may well do more than where they do.

    Raises:
        DetectorError: a fitted detector that does not put its positives above its negatives, so that nothing says where its vector points to.
    """
    weight, at, draws = learned.detector.weight, learned.detector.at, draws_needed(alpha)
    own = weight * _scale(spec, learned) / np.linalg.norm(weight)
    nulls: dict[str, Floats] = {}
    if spec.controls and isinstance(learned, LearnedProbe):
        shuffled, random = learned.nulls
        nulls = {SHUFFLED: shuffled.directions.weights[:draws], RANDOM: random.directions.weights[:draws]}
    elif spec.controls and isinstance(learned, LearnedDirection) and acts is not None:
        none = np.zeros(len(acts), dtype=np.bool_)
        found = random_directions(acts, none, learned.as_directions, draws, stream(seed, RANDOM, spec.digest))
        isotropic = stream(seed, ISOTROPIC, spec.digest).standard_normal((draws, len(own)))
        nulls = {RANDOM: found.weights, ISOTROPIC: isotropic}
    length = np.linalg.norm(own)
    return Vectors(at, own, {name: _long(vectors, float(length)) for name, vectors in nulls.items()})


def clamps_of(spec: SteerSpec, learned: LearnedLatents, highest: Floats, alpha: float) -> Clamps:
    """The latents of a detector, with the `highest` value of each, and of its random latents that fire as often as many draws as alpha needs; where
    they are silenced, all.

    Raises:
        DetectorError: a latent that never fires on the corpus, so that nothing says what it is to be clamped to.
    """
    groups = learned.detector.groups
    if any(spec.strengths) and not (highest > 0).all():
        silent = groups.groups[0][int(np.argmin(highest > 0))]
        raise DetectorError(f"{spec.detector.name}: latent {silent} never fires on the corpus, so it has no highest value to be clamped to; leave it out")
    most = draws_needed(alpha) if any(spec.strengths) else len(groups.groups)  # of latents that are silenced some never fire, and control nothing
    nulls = {RANDOM_LATENTS: groups.groups[1 : 1 + most]} if spec.controls else {}
    return Clamps(learned.detector.at, groups.sae, groups.groups[0], highest, nulls)


_UNIT: Final[dict[Unit, str]] = {"vector": "the mean of its positives is not above that of its negatives", "sd": "its scores do not vary within the classes"}


def _scale(spec: SteerSpec, learned: LearnedProbe | LearnedDirection) -> float:
    """How long the vector is that a strength of 1 adds."""
    weight = learned.detector.weight
    if spec.action == "project_out" or spec.unit == "norm":
        return 1.0
    if isinstance(learned, LearnedDirection):
        return float(np.linalg.norm(weight))
    labels, scores = labels_of(learned.spec), learned.detector.score(learned.fit.vectors)
    means = np.where(labels, scores[labels].mean(), scores[~labels].mean())
    found = float(scores[labels].mean() - scores[~labels].mean()) if spec.unit == "vector" else float((scores - means).std())
    if not found > 0:
        raise DetectorError(f"{spec.detector.name} on {learned.spec.fit.name}: {_UNIT[spec.unit]}, so it can't be steered along; fit it on other prompts")
    return found / float(np.linalg.norm(weight))


def _long(vectors: Floats, length: float) -> Floats:
    made: Floats = vectors * (length / np.linalg.norm(vectors, axis=1, keepdims=True))
    return made
