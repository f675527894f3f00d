"""Latents of a sparse autoencoder as detectors. Free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from mi_audit.errors import PlanError
from mi_audit.plan.detectors import DetectorSpec, FalsePositiveRate, describe_suite, frozen_threshold, negatives_of, require_name
from mi_audit.plan.digest import Json
from mi_audit.plan.places import At, Tokens
from mi_audit.plan.saes import SaeSpec
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.suite import Suite

Combine = Literal["sum", "max", "any"]
"""How the latents of a group become one number at a token: their sum, the highest, or 1 where any of them fires and 0 where none does."""
Pooling = Literal["mean", "max"]
"""How the numbers of several tokens become that of their prompt."""


@dataclass(frozen=True)
class LatentSpec(DetectorSpec):
    """One or several latents of an SAE, which at each token become one number."""

    kind = "latent"

    sae: SaeSpec
    latents: tuple[int, ...]
    combine: Combine
    pooling: Pooling
    found_on: tuple[Suite, ...] = ()

    @property
    def seen(self) -> tuple[tuple[str, Suite], ...]:
        """See `DetectorSpec.seen`; what its latents were found on is seen too."""
        return (*super().seen, *(("its latents were found on", suite) for suite in self.found_on))

    @property
    def learning(self) -> tuple[tuple[Prompt, ...], ...]:
        """The negatives that calibrate it; see `DetectorSpec.learning`."""
        return (negatives_of(self.threshold.on),) if isinstance(self.threshold, FalsePositiveRate) else ()

    @property
    def point(self) -> str:
        """The hook point, by standard name."""
        return self.sae.at.point

    def places(self, n_layers: int, usable: Sequence[int | None]) -> tuple[At, ...]:
        """Where the SAE encodes; see `DetectorSpec.places`."""
        return (self.sae.at.in_model(n_layers),)

    def _own(self) -> dict[str, Json]:
        return {
            "sae": self.sae.describe(),
            "latents": list(self.latents),
            "combine": self.combine,
            "pooling": self.pooling,
            "found_on": [describe_suite(suite) for suite in self.found_on],
        }

    def __str__(self) -> str:
        what = f"latent {self.latents[0]}" if len(self.latents) == 1 else f"{self.combine} of the latents {', '.join(map(str, self.latents))}"
        return f"{self.name}: {what} of {self.sae.name}, {self.sae.at}, {self.tokens}"


def latent(
    sae: SaeSpec,
    index: int,
    *,
    name: str,
    tokens: str | Tokens = "last",
    pooling: Pooling = "mean",
    threshold: FalsePositiveRate | float | None = 0.0,
    found_on: Suite | Sequence[Suite] = (),
) -> LatentSpec:
    """Declare a latent of a sparse autoencoder as a detector; its score is the latent's activation.

    Args:
        sae: from `mi.sae`.
        index: which latent, from 0.
        name: how reports name it.
        tokens: as for `mi.probe`.
        pooling: how the activations at several tokens become the prompt's score: their mean, or the highest.
        threshold: as for `mi.probe`; by default 0, above which a latent fires.
        found_on: the suites by which it was chosen among others, by `mi.find_latents` or by hand; no claim may be tested on them.

    Raises:
        PlanError: an argument is of the wrong kind, or the SAE has no such latent.
    """
    return _declared("mi.latent", sae, (index,), "sum", name, tokens, pooling, threshold, found_on)


def latent_group(
    sae: SaeSpec,
    indices: Sequence[int],
    *,
    name: str,
    combine: Combine = "sum",
    tokens: str | Tokens = "last",
    pooling: Pooling = "mean",
    threshold: FalsePositiveRate | float | None = 0.0,
    found_on: Suite | Sequence[Suite] = (),
) -> LatentSpec:
    """Declare several latents of a sparse autoencoder as one detector, for a feature that was split over them.

    Args:
        sae: from `mi.sae`.
        indices: which latents, from 0; two at least, none twice.
        name: how reports name it.
        combine: how they become one number at a token: `sum`, `max`, or `any` (1 where any of them fires, else 0).
        tokens: as for `mi.probe`.
        pooling: as for `mi.latent`.
        threshold: as for `mi.probe`; by default 0.
        found_on: as for `mi.latent`.

    Raises:
        PlanError: an argument is of the wrong kind, or the SAE has no such latents.
    """
    if isinstance(indices, str) or not isinstance(indices, Sequence) or len(indices) < 2:
        raise PlanError(f"mi.latent_group({name!r}): give two latents or more; a single one is declared with mi.latent")
    if combine not in get_args(Combine):
        raise PlanError(f"mi.latent_group({name!r}, combine={combine!r}): known are {', '.join(get_args(Combine))}")
    return _declared("mi.latent_group", sae, tuple(indices), combine, name, tokens, pooling, threshold, found_on)


def _declared(
    function: str,
    sae: object,
    indices: tuple[object, ...],
    combine: Combine,
    name: str,
    tokens: str | Tokens,
    pooling: Pooling,
    threshold: FalsePositiveRate | float | None,
    found_on: Suite | Sequence[Suite],
) -> LatentSpec:
    require_name(name, function)
    if not isinstance(sae, SaeSpec):
        raise PlanError(f"{function}({sae!r}, …): the first argument is an SAE made with mi.sae(…)")
    latents: list[int] = []
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < sae.config.d_sae:
            raise PlanError(f"{function}({sae.name}, {index!r}, …): its latents are 0 to {sae.config.d_sae - 1}")
        if index in latents:
            raise PlanError(f"{function}({name!r}): latent {index} is there twice; leave one out")
        latents.append(index)
    if pooling not in get_args(Pooling):
        raise PlanError(f"{function}({name!r}, pooling={pooling!r}): known are {', '.join(get_args(Pooling))}")
    frozen = frozen_threshold(threshold, f"{function}({name!r}, threshold=…)")
    chosen = Tokens.of(tokens)
    suites = (found_on,) if isinstance(found_on, Suite) else tuple(found_on)
    if not all(isinstance(suite, Suite) for suite in suites):
        raise PlanError(f"{function}({name!r}, found_on={found_on!r}): give a suite made with mi.suite(…), or several")
    return LatentSpec(name, chosen, frozen, method=None, fit=None, sae=sae, latents=tuple(latents), combine=combine, pooling=pooling, found_on=suites)
