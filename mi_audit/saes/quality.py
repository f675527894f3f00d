"""How well an SAE stands for the activations of the model under audit: what it explains of them, and what the model loses where it takes their place.

Explained variance, L0 and loss recovered are defined as in sae-lens's own evaluation (`sae_lens.evals`); attention sinks are left out of all of them. Every
number comes with a lower bound by the delete-a-group jackknife, since it is measured on a sample. No torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mi_audit.errors import StatisticsError
from mi_audit.stats.checks import Floats
from mi_audit.stats.jackknife import Jackknife, worth_of

DENSE: Final = 0.1
"""A latent that fires at more than this share of the tokens tells little of any of them."""


@dataclass(frozen=True)
class Measured:
    """A number with its lower bound, one-sided; None where nothing tells how far it is off, because the prompts come in one group or what it is a share of is
    not shown to be there."""

    value: float
    low: float | None


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an SAE makes of the activations of n prompts. Sums over a prompt's tokens, attention sinks left out, float64; x stands where x̂ belongs.

    Attributes:
        tokens: [n].
        residuals: Σ‖x − x̂‖² [n].
        silent: Σ‖x − x̂₀‖² [n], x̂₀ being what it makes with all its latents silent.
        squares: Σ‖x‖² [n].
        sums: Σx [n, d_out].
        fired: Σ of latents that are not 0 [n].
        ratios: Σ‖x̂‖ / ‖x‖ [n].
        fires: at how many of all tokens each latent is not 0 [d_sae].
    """

    tokens: Floats
    residuals: Floats
    silent: Floats
    squares: Floats
    sums: Floats
    fired: Floats
    ratios: Floats
    fires: Floats

    @property
    def dead(self) -> int:
        """How many latents fire at no token."""
        return int((self.fires == 0).sum())

    @property
    def dense(self) -> int:
        """How many latents fire at more than `DENSE` of the tokens."""
        return int((self.fires > DENSE * self.tokens.sum()).sum())

    def explained_variance(self, groups: Sequence[str], alpha: float) -> Measured:
        """1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², over all tokens; x̄ is their mean."""

        def share(kept: Floats) -> float:
            variance = kept @ self.squares - ((kept @ self.sums) ** 2).sum() / (kept @ self.tokens)
            return float(1 - (kept @ self.residuals) / variance)

        return _measured(share, groups, self.tokens, alpha)

    def explained_by_latents(self, groups: Sequence[str], alpha: float) -> Measured:
        """1 − Σ‖x − x̂‖² / Σ‖x − x̂₀‖²: of what is left where all latents are silent, the share that they explain; 0 where nothing is left.

        This tells what a skip transcoder's latents are worth beside its skip, and a contextual SAE's beside its prediction.
        """

        def share(kept: Floats) -> float:
            left = kept @ self.silent
            return float(1 - (kept @ self.residuals) / left) if left > 0 else 0.0

        return _measured(share, groups, self.tokens, alpha)

    def l0(self, groups: Sequence[str], alpha: float) -> Measured:
        """How many latents fire at a token, on average."""
        return _measured(lambda kept: float(kept @ self.fired / (kept @ self.tokens)), groups, self.tokens, alpha)

    def norm_ratio(self, groups: Sequence[str], alpha: float) -> Measured:
        """‖x̂‖ / ‖x‖, the mean over tokens: below 1 where reconstructions shrink."""
        return _measured(lambda kept: float(kept @ self.ratios / (kept @ self.tokens)), groups, self.tokens, alpha)


@dataclass(frozen=True, eq=False)
class Recovery:
    """What it costs the model to have other activations in the place of its own. Sums over the next tokens of each of n prompts, in nats, float64.

    Attributes:
        tokens: next tokens [n].
        plain: losses of the model as it is [n].
        sae: with the SAE's reconstructions [n].
        mean: with the mean activation of all tokens [n].
        zero: with zeros [n].
        kl: KL of the distributions with reconstructions from those without [n].
    """

    tokens: Floats
    plain: Floats
    sae: Floats
    mean: Floats
    zero: Floats
    kl: Floats

    def recovered(self, groups: Sequence[str], alpha: float, *, zero: bool = False) -> Measured:
        """(L_mean − L_sae) / (L_mean − L): of the loss that the mean in its place costs (or zeros), what the SAE does not cost.

        There is no bound where it is not shown that the mean costs anything: nothing can be recovered then.
        """
        worst = self.zero if zero else self.mean
        cost = _measured(lambda kept: float(kept @ (worst - self.plain) / (kept @ self.tokens)), groups, self.tokens, alpha)
        found = _measured(lambda kept: float((kept @ (worst - self.sae)) / (kept @ (worst - self.plain))), groups, self.tokens, alpha)
        return found if cost.low is not None and cost.low > 0 else Measured(found.value, None)

    def divergence(self, groups: Sequence[str], alpha: float) -> Measured:
        """KL of the model's distributions with the SAE in place from those without, in nats per next token."""
        return _measured(lambda kept: float(kept @ self.kl / (kept @ self.tokens)), groups, self.tokens, alpha)


def _measured(statistic: Callable[[Floats], float], groups: Sequence[str], tokens: Floats, alpha: float) -> Measured:
    """A statistic of rows, each counted (1) or not (0), with a bound by the jackknife over groups. StatisticsError where the rows leave it undefined."""
    names, number = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    value = statistic(np.ones(len(tokens)))
    if not np.isfinite(value):
        raise StatisticsError("what is measured of the SAE is undefined on these prompts: their activations do not vary; take other prompts")
    if len(names) < 2:
        return Measured(value, None)
    without = np.array([statistic((number != group).astype(np.float64)) for group in range(len(names))])
    low, _ = Jackknife.of(value, without, worth_of(np.bincount(number, weights=tokens).astype(np.float64))).bounds(alpha)
    return Measured(value, low if np.isfinite(low) else None)
