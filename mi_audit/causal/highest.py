"""The highest value of latents on a named corpus: what they are clamped to multiples of."""

from typing import TYPE_CHECKING, Final

import numpy as np

from mi_audit.detectors.latents import LearnedLatents
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.every_token import every_token
from mi_audit.plan.latents import LatentSpec
from mi_audit.saes.latents import LatentGroups
from mi_audit.stats.checks import Floats
from mi_audit.suites.suite import Suite, suite

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

NEUTRAL: Final = "neutral_text"
MOST: Final = 200
"""Prompts of the corpus, its first."""


def corpus_of(spec: LatentSpec) -> Suite:
    """The suite that the latents were found on, or neutral text where none is named."""
    return (spec.found_on[0] if spec.found_on else suite(NEUTRAL)).head(MOST)


def highest_values(model: "LoadedModel", learned: LearnedLatents, corpus: Suite, cache: ActivationCache | None) -> Floats:
    """The highest value [m] of each latent of the detector at any token of the corpus, attention sinks left out."""
    import torch

    from mi_audit.engine.reduction import encoded

    groups = learned.detector.groups
    alone = LatentGroups(groups.sae, tuple((latent,) for latent in groups.groups[0]), "sum", "mean")
    highest = np.full(alone.width, -np.inf)
    for prompt in encode_all(model, corpus.prompts, cache):
        (tokens,) = every_token(model, [prompt], learned.detector.at)
        (found,) = encoded(torch.from_numpy(tokens.activations[~tokens.sinks]), [alone])
        if len(found):
            highest = np.maximum(highest, found.amax(dim=0).double().numpy())
    return highest
