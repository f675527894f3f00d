"""What a latent is about: where it fires over a suite, which tokens it makes likelier, and which latents are near it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.every_token import every_token
from mi_audit.errors import DetectorError
from mi_audit.model.audited import AuditedModel
from mi_audit.plan.saes import SaeSpec
from mi_audit.saes.encoding import Encoder
from mi_audit.saes.latents import weights_of
from mi_audit.saes.logit_effect import logit_effect
from mi_audit.stats.checks import Bools, Floats
from mi_audit.suites.suite import Suite

TOP: Final = 10
BINS: Final = 24
NEURONPEDIA: Final = "https://www.neuronpedia.org"


@dataclass(frozen=True, eq=False)
class Shown:
    """A prompt of L tokens: its id, the tokens' `texts`, the latent's `values` at them [L], and which of them are attention `sinks` [L]."""

    prompt: str
    texts: tuple[str, ...]
    values: Floats
    sinks: Bools

    @property
    def highest(self) -> float:
        """The highest value at a token that is no sink."""
        return float(self.values[~self.sinks].max(initial=0.0))


@dataclass(frozen=True, eq=False)
class LatentView:
    """A latent, looked at.

    Attributes:
        latent: its number.
        suite, prompts, tokens: over which it was read; attention sinks are left out of all counts.
        firings: tokens at which it fires.
        edges, counts: a histogram of its values there, [b + 1] and [b].
        top: the prompts in which it is highest, highest first.
        promoted, suppressed: the tokens that it makes likelier and unlikelier by the direct path, with the effect on their logits in units of its row's length;
            empty with the reason in `no_logits`.
        nearest: other latents by the cosine of their decoder rows.
        neuronpedia: where Neuronpedia shows it, if the SAE's metadata name it.
    """

    latent: int
    suite: str
    prompts: int
    tokens: int
    firings: int
    edges: Floats
    counts: "np.ndarray[tuple[int], np.dtype[np.int64]]"
    top: tuple[Shown, ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    no_logits: str
    nearest: tuple[tuple[int, float], ...]
    neuronpedia: str | None


def look(model: AuditedModel, sae: SaeSpec, latent: int, suite: Suite, cache: ActivationCache | None) -> LatentView:
    """Look at a latent over a suite.

    Raises:
        DetectorError: the SAE has no such latent, or its files changed or are damaged.
        HookPointError, PromptError: as the passes.
    """
    if not 0 <= latent < sae.config.d_sae:
        raise DetectorError(f"{sae.name} has the latents 0 to {sae.config.d_sae - 1}, not {latent}")
    weights, at = weights_of(sae), sae.at.in_model(model.n_layers)
    encode = Encoder.of(sae.config, weights, [latent])
    encoded = list(encode_all(model, suite.prompts, cache))
    shown = []
    for prompt, each, tokens in zip(suite.prompts, encoded, every_token(model, encoded, at, cache=cache), strict=True):
        values = encode(torch.from_numpy(tokens.activations))[:, 0].double().numpy()
        shown.append(Shown(prompt.id, each.texts(), values, tokens.sinks))
    fired = np.concatenate([each.values[~each.sinks] for each in shown])
    counts, edges = np.histogram(fired[fired != 0], bins=BINS)
    promoted, suppressed, why = _logits(model, sae, latent)
    return LatentView(
        latent=latent,
        suite=suite.name,
        prompts=len(suite),
        tokens=len(fired),
        firings=int((fired != 0).sum()),
        edges=edges,
        counts=counts,
        top=tuple(sorted((each for each in shown if each.highest > 0), key=lambda each: (-each.highest, each.prompt))[:TOP]),
        promoted=promoted,
        suppressed=suppressed,
        no_logits=why,
        nearest=_nearest(weights.W_dec, latent),
        neuronpedia=_neuronpedia(sae.config.metadata.neuronpedia_id, latent),
    )


def _logits(model: AuditedModel, sae: SaeSpec, latent: int) -> tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...], str]:
    row = weights_of(sae).W_dec[latent]
    loaded = model.loaded()
    try:
        effect = logit_effect(loaded, sae.reconstructs.in_model(model.n_layers), row / row.norm().clamp(min=1e-12))
    except DetectorError as error:
        return (), (), str(error)
    order = torch.argsort(effect, stable=True).tolist()

    def named(tokens: Sequence[int]) -> tuple[tuple[str, float], ...]:
        return tuple((str(loaded.tokenizer.decode([token])), float(effect[token])) for token in tokens)

    return named(order[: -TOP - 1 : -1]), named(order[:TOP]), ""


def _nearest(rows: torch.Tensor, latent: int) -> tuple[tuple[int, float], ...]:
    unit = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    cosines = unit @ unit[latent]
    order = torch.argsort(-cosines, stable=True).tolist()
    return tuple((other, float(cosines[other])) for other in order if other != latent)[:TOP]


def _neuronpedia(known: str | None, latent: int) -> str | None:
    """`model/sae`, of letters, digits and punctuation that an address may have; anything else is left out."""
    if known is None or not all(part and all(letter.isascii() and (letter.isalnum() or letter in "-_.") for letter in part) for part in known.split("/")):
        return None
    return f"{NEURONPEDIA}/{known}/{latent}"
