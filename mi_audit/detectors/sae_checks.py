"""May an SAE testify? What it explains of the prompts that are read and recovers on neutral text, measured once and held against its floors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from mi_audit.detectors.controls import stream
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.progress import Progress
from mi_audit.engine.tokens import Encoded
from mi_audit.errors import DetectorError
from mi_audit.model.audited import AuditedModel
from mi_audit.plan.digest import digest_of
from mi_audit.plan.places import At
from mi_audit.plan.saes import SaeSpec
from mi_audit.saes.every_latent import computed_by
from mi_audit.saes.quality import Measured, Reconstruction, Recovery
from mi_audit.stats.checks import Floats
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.suite import Suite, suite

NEUTRAL: Final = "neutral_text"
"""The shipped suite on which it is measured what the model loses."""

SAMPLE: Final = 128
"""Prompts of a suite, or all where there are fewer."""

LONGEST: Final = 128
"""Tokens of a neutral prompt, at most."""

RECOVERED: Final = 64
"""Tokens of a prompt on which it is measured what the model loses, at most, and one prompt of a group: each passes four times, to the end, with its logits."""

CLEARLY: Final = 0.01
"""By how much more of the variance an SAE is shown to explain at another layer than where it is declared, before it counts as one of that layer."""

_Sums = TypeVar("_Sums", Reconstruction, Recovery)


@dataclass(frozen=True)
class SaeQuality:
    """How well an SAE stands for a model's activations on a suite's prompts and on neutral text.

    Attributes:
        suite: the name of the suite that is read; `prompts` of it and `tokens` in these were encoded.
        explained_variance, l0, norm_ratio: on them.
        explained_by_latents: of what is left on them with all latents silent, what these explain; None where nothing but latents and a bias makes the
            reconstruction, so that it is all theirs.
        neutral_explained_variance: on neutral text.
        dead, dense: latents that fire at none, or at more than a tenth, of the neutral text's `neutral_tokens` tokens.
        loss_recovered, loss_recovered_zero: on neutral text, against the mean and against zeros in the activations' place.
        kl: on neutral text, nats per next token.
        better_at: the hook point a layer up or down at which it explains neutral text clearly better than where it is declared; None where there is none, or
            where its metadata say where it belongs.
        below: the floors that it does not reach, in words; a claim that rests on it decides nothing then.
    """

    suite: str
    prompts: int
    tokens: int
    explained_variance: Measured
    l0: Measured
    norm_ratio: Measured
    explained_by_latents: Measured | None
    neutral_explained_variance: Measured
    neutral_tokens: int
    dead: int
    dense: int
    loss_recovered: Measured
    loss_recovered_zero: Measured
    kl: Measured
    better_at: str | None
    below: tuple[str, ...]


class SaeChecks:
    """Checks the SAEs of one model, each once on neutral text and once on every suite that is read."""

    def __init__(self, model: AuditedModel, alpha: float, seed: int, cache: ActivationCache | None, progress: Progress | None = None) -> None:
        self._model, self._alpha, self._seed, self._cache, self._progress = model, alpha, seed, cache, progress
        self._qualities: dict[tuple[SaeSpec, str], SaeQuality] = {}
        self._reconstructions: dict[tuple[SaeSpec, tuple[tuple[int, ...], ...]], Reconstruction] = {}
        self._recoveries: dict[SaeSpec, Recovery] = {}

    def quality(self, sae: SaeSpec, read: Suite) -> SaeQuality:
        """How well the SAE stands for the activations on the prompts that are read.

        Raises:
            DetectorError: the SAE's files changed or are damaged, it encodes another width, or nothing says what a transcoder reconstructs.
            HookPointError, PromptError: as the passes.
        """
        key = (sae, read.digest)
        if key not in self._qualities:
            self._qualities[key] = self._measured(sae, read)
        return self._qualities[key]

    def firing(self, sae: SaeSpec) -> Floats:
        """At which share of the neutral text's tokens each latent fires [d_sae]. Raises as `quality`."""
        neutral = self._neutral
        found = self._reconstruction(sae, neutral.prompts, neutral=True)
        shares: Floats = found.fires / found.tokens.sum()
        return shares

    @cached_property
    def _neutral(self) -> Suite:
        return suite(NEUTRAL)

    def _measured(self, sae: SaeSpec, read: Suite) -> SaeQuality:
        neutral, sample = self._neutral, self._sample(sae, read)
        groups, neutral_groups, alpha = [prompt.group for prompt in sample], neutral.groups(), self._alpha
        own, elsewhere = self._reconstruction(sae, sample), self._reconstruction(sae, neutral.prompts, neutral=True)
        recovery, recovery_groups = self._recovery(sae, neutral, elsewhere), [prompt.group for prompt in _one_of_each(neutral)]
        explained, recovered = own.explained_variance(groups, alpha), recovery.recovered(recovery_groups, alpha)
        floors = sae.floors
        own_share = own.explained_by_latents(groups, alpha) if sae.config.has_bypass else None
        below = [
            f"the SAE {sae.name} {said} ({_shown(found)}), the floor is {floor:g} ({name})"
            for name, found, floor, said in (
                ("explained_variance", explained, floors.explained_variance, f"explains {explained.value:.0%} of the variance on {read.name}"),
                ("loss_recovered", recovered, floors.loss_recovered, f"recovers {recovered.value:.0%} of the loss on neutral text"),
            )
            if found.low is None or found.low < floor
        ]
        if own_share is not None and (own_share.low is None or own_share.low < floors.explained_variance):
            said = f"has latents that explain {own_share.value:.0%} of the variance that is left on {read.name} with all of them silent"
            below.append(f"the SAE {sae.name} {said} ({_shown(own_share)}), the floor is {floors.explained_variance:g} (explained_variance)")
        better_at = self._better_at(sae, neutral, elsewhere)
        if better_at is not None:
            where = f"{sae.at.in_model(self._model.n_layers)}, where it is declared"
            below.append(f"the SAE {sae.name}, whose metadata do not say where it belongs, explains neutral text better at {better_at} than at {where}")
        return SaeQuality(
            suite=read.name,
            prompts=len(sample),
            tokens=int(own.tokens.sum()),
            explained_variance=explained,
            l0=own.l0(groups, alpha),
            norm_ratio=own.norm_ratio(groups, alpha),
            explained_by_latents=own_share,
            neutral_explained_variance=elsewhere.explained_variance(neutral_groups, alpha),
            neutral_tokens=int(elsewhere.tokens.sum()),
            dead=elsewhere.dead,
            dense=elsewhere.dense,
            loss_recovered=recovered,
            loss_recovered_zero=recovery.recovered(recovery_groups, alpha, zero=True),
            kl=recovery.divergence(recovery_groups, alpha),
            better_at=better_at,
            below=tuple(below),
        )

    def _sample(self, sae: SaeSpec, read: Suite) -> Sequence[Prompt]:
        """Some of a suite's prompts, in its order; which of them follows from the seed."""
        if len(read) <= SAMPLE:
            return read.prompts
        rows = stream(self._seed, "sae", sae.digest, read.digest).choice(len(read), SAMPLE, replace=False)
        return [read.prompts[row] for row in sorted(rows.tolist())]

    def _reconstruction(self, sae: SaeSpec, prompts: Sequence[Prompt], *, neutral: bool = False) -> Reconstruction:
        encoded = self._encoded(sae, prompts) if neutral else list(encode_all(self._model, prompts, self._cache))
        ids = tuple(each.ids for each in encoded)
        if (sae, ids) not in self._reconstructions:
            places = [place.in_model(self._model.n_layers) for place in (sae.at, sae.reconstructs)]

            def compute() -> Reconstruction:
                from mi_audit.engine.streaming import streamed_together
                from mi_audit.saes.measuring import reconstruction

                read = streamed_together(self._model.loaded(), ids, places, self._titled(f"what {sae.name} explains"))
                return reconstruction(sae, [given for given, _ in read], [wanted for _, wanted in read])

            self._reconstructions[sae, ids] = self._kept(Reconstruction, sae, ids, compute)
        return self._reconstructions[sae, ids]

    def _better_at(self, sae: SaeSpec, neutral: Suite, own: Reconstruction) -> str | None:
        """See `SaeQuality`. Neighbouring layers are so alike that an SAE of one may reach the floors at the other; at its own it explains most."""
        at, groups = sae.at.in_model(self._model.n_layers), neutral.groups()
        if sae.config.metadata.hook_name is not None or sae.config.is_transcoder or at.layer is None:
            return None
        here = own.explained_variance(groups, self._alpha).value
        there = {(tap.name, tap.layer) for tap in self._model.hook_points.taps}
        for layer in (at.layer - 1, at.layer + 1):
            if (at.point, layer) not in there:
                continue
            other = At(at.point, layer=layer)
            found = self._reconstruction(replace(sae, at=other), neutral.prompts, neutral=True).explained_variance(groups, self._alpha)
            if found.low is not None and found.low > here + CLEARLY:
                return str(other)
        return None

    def _recovery(self, sae: SaeSpec, neutral: Suite, found: Reconstruction) -> Recovery:
        if sae not in self._recoveries:
            ids = [each.ids[:RECOVERED] for each in self._encoded(sae, _one_of_each(neutral))]
            mean = found.sums.sum(axis=0) / found.tokens.sum()

            def compute() -> Recovery:
                from mi_audit.saes.measuring import recovery

                return recovery(self._model.loaded(), sae, ids, mean, self._titled(f"what is lost with {sae.name} in place"))

            self._recoveries[sae] = self._kept(Recovery, sae, ids, compute, mean)
        return self._recoveries[sae]

    def _titled(self, title: str) -> Progress | None:
        return None if self._progress is None else self._progress.titled(title)

    def _encoded(self, sae: SaeSpec, neutral: Sequence[Prompt]) -> list[Encoded]:
        """Neutral text, of each prompt no more than the SAE was trained on, or the model takes."""
        longest = min(length for length in (sae.config.metadata.context_size, self._model.max_length, LONGEST) if length is not None)
        return list(encode_all(self._model, neutral, self._cache, most=longest))

    def _kept(self, kind: type[_Sums], sae: SaeSpec, ids: Sequence[tuple[int, ...]], compute: Callable[[], _Sums], mean: Floats | None = None) -> _Sums:
        """The sums over these prompts, from the cache where they are there; `mean` is what else they are made with."""
        if self._cache is None:
            return compute()
        key = digest_of(
            {
                "sae": sae.digest,
                "config": sae.config.describe(),
                "at": str(sae.at),
                "out": str(sae.out),
                "sums": kind.__name__,
                **computed_by(sae),
                "prompts": [list(each) for each in ids],
                "mean": None if mean is None else sha256(mean.tobytes()).hexdigest(),
            }
        )[:40]
        known = self._cache.tensors(key)
        if _fits(kind, known, len(ids)):
            return kind(**known)
        found = compute()
        self._cache.put(key, {each.name: np.ascontiguousarray(getattr(found, each.name)) for each in fields(found)})
        return found


def _one_of_each(suite: Suite) -> list[Prompt]:
    """The first prompt of every group."""
    return list({prompt.group: prompt for prompt in reversed(suite.prompts)}.values())[::-1]


def _shown(found: Measured) -> str:
    return "no bound can be shown" if found.low is None else f"at least {found.low:.3g} is shown"


def _fits(kind: type[Any], known: Mapping[str, NDArray[Any]], prompts: int) -> bool:
    """Whether what the cache holds are such sums of so many prompts."""
    names = {each.name for each in fields(kind)}
    return known.keys() == names and all(
        array.dtype == np.float64 and np.isfinite(array).all() and (name == "fires" or array.shape[0] == prompts) for name, array in known.items()
    )


def require_match(sae: SaeSpec, model: AuditedModel) -> None:
    """Hold an SAE's metadata against the model under audit.

    Raises:
        DetectorError: it encodes or reconstructs another width than the hook point has, reconstructs what a forward pass meets before what it encodes, or was
            trained on another model; the message names the field.
        HookPointError: the model has no such hook point.
    """
    orders = []
    for place, field, does, has in ((sae.at, "d_in", "encodes", sae.config.d_in), (sae.out, "d_out", "reconstructs", sae.config.d_out)):
        if place is None:
            continue
        at = place.in_model(model.n_layers)
        found = model.hook_points.resolve(at.point, at.layer)
        orders.append(found.order)
        if found.width != has:
            raise DetectorError(f"{sae.name}: {field}: it {does} {has} numbers, but {at} of {model.ref} has {found.width}; it was trained on another model")
    if orders != sorted(orders):
        raise DetectorError(f"{sae.name}: hook_name_out: a forward pass meets {sae.out} before {sae.at}, so it can't be made from that; mend its cfg.json")
    trained_on = sae.config.metadata.model_name
    if sae.model is None and trained_on is not None and _bare(trained_on) != _bare(model.ref):
        raise DetectorError(
            f"{sae.name}: model_name: it was trained on {trained_on!r}, the model under audit is {model.ref!r}; if they are the same, say"
            f" mi.sae(…, model={model.ref!r})"
        )
    if sae.model is not None and sae.model != model.ref:
        raise DetectorError(f"{sae.name}: it is declared for the model {sae.model!r}, the model under audit is {model.ref!r}")


def _bare(name: str) -> str:
    """A model's name without its owner, its revision, its case and punctuation."""
    return "".join(letter for letter in name.split("@")[0].rstrip("/").split("/")[-1].lower() if letter.isalnum())
