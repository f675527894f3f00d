"""What a trained SAE is worth on text that it has not seen, beside the principal components of what it has."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mi_audit.engine.every_token import EveryToken
from mi_audit.model.loaded import LoadedModel
from mi_audit.plan.digest import Json
from mi_audit.plan.saes import SaeSpec
from mi_audit.saes.measuring import reconstruction, recovery
from mi_audit.stats.checks import Floats

ALPHA: Final = 0.025
"""The level of the lower bounds, one-sided."""
RECOVERED_ON: Final = 4096
"""Tokens on which it is measured what the model loses: each passes four times, with its logits."""


@dataclass(frozen=True)
class HeldOut:
    """Numbers on held-out text, attention sinks left out; a `…_low` is the lower bound by the jackknife over contexts.

    Attributes:
        contexts, tokens: how much text.
        explained_variance: of the activations, by the reconstruction; `pca_explained_variance` by as many principal components of the training text as latents
            may fire at a token (`components`).
        l0: latents that fire at a token, on average.
        alive: share of the latents that fire at any token; `dense` how many fire at more than a tenth.
        loss_recovered: against the mean in the activations' place; `loss_recovered_zero` against zeros.
        kl: nats per next token.
        norm_ratio: ‖reconstruction‖ / ‖activation‖.
    """

    contexts: int
    tokens: int
    explained_variance: float
    explained_variance_low: float | None
    components: int
    pca_explained_variance: float
    l0: float
    alive: float
    dense: int
    loss_recovered: float
    loss_recovered_low: float | None
    loss_recovered_zero: float
    kl: float
    norm_ratio: float

    def describe(self) -> dict[str, Json]:
        """JSON-ready description."""
        return dict(vars(self))


def held_out(model: LoadedModel, sae: SaeSpec, contexts: Sequence[EveryToken], seen: NDArray[np.float32], components: int) -> HeldOut:
    """Measure an SAE.

    Args:
        model: the model that it was trained on.
        sae: the SAE.
        contexts: held-out text with its activations where it encodes.
        seen: a sample of the activations that it was trained on [n, d_in].
        components: principal components to hold against it.

    Raises:
        DetectorError, HookPointError, PromptError: as `reconstruction` and `recovery`.
    """
    found, groups = reconstruction(sae, contexts), [str(number) for number in range(len(contexts))]
    few = _beginning(contexts, RECOVERED_ON)
    recovered_from = recovery(model, sae, [each.ids for each in few], found.sums.sum(axis=0) / found.tokens.sum())
    explained, recovered = found.explained_variance(groups, ALPHA), recovered_from.recovered(groups[: len(few)], ALPHA)
    return HeldOut(
        contexts=len(contexts),
        tokens=int(found.tokens.sum()),
        explained_variance=explained.value,
        explained_variance_low=explained.low,
        components=components,
        pca_explained_variance=by_components(seen, (each.activations[~each.sinks] for each in contexts), components),
        l0=found.l0(groups, ALPHA).value,
        alive=1 - found.dead / len(found.fires),
        dense=found.dense,
        loss_recovered=recovered.value,
        loss_recovered_low=recovered.low,
        loss_recovered_zero=recovered_from.recovered(groups[: len(few)], ALPHA, zero=True).value,
        kl=recovered_from.divergence(groups[: len(few)], ALPHA).value,
        norm_ratio=found.norm_ratio(groups, ALPHA).value,
    )


def by_components(seen: NDArray[np.float32], unseen: Iterable[NDArray[np.float32]], components: int) -> float:
    """The share of the variance of `unseen` [·, d] that the first principal components of `seen` [n, d] explain, about the mean of `seen`, float64."""
    known = seen.astype(np.float64)
    middle = known.mean(axis=0)
    _, vectors = np.linalg.eigh((known - middle).T @ (known - middle))
    first: NDArray[Any] = vectors[:, -components:]
    rows: Floats = np.concatenate(list(unseen)).astype(np.float64)
    apart = rows - middle
    left = (apart**2).sum() - ((apart @ first) ** 2).sum()
    return float(1 - left / ((rows - rows.mean(axis=0)) ** 2).sum())


def _beginning(contexts: Sequence[EveryToken], tokens: int) -> Sequence[EveryToken]:
    """The first contexts that together have so many tokens, two at least."""
    sizes = np.cumsum([len(each.ids) for each in contexts])
    return contexts[: max(2, int(np.searchsorted(sizes, tokens)) + 1)]
