"""Specs of experiments: a detector's direction or latents changed in the model, and an effect measured before and after. Free of torch."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, TypeGuard, get_args

from mi_audit.errors import PlanError, SuiteError
from mi_audit.plan.detectors import DetectorSpec, describe_suite
from mi_audit.plan.digest import Json, digest_of
from mi_audit.plan.effects import EffectSpec
from mi_audit.plan.latents import LatentSpec
from mi_audit.plan.places import Tokens
from mi_audit.suites.suite import Suite

Action = Literal["add", "clamp", "project_out"]
"""What is done at the touched tokens: α times the direction is added; latents are set to α times their highest value on a corpus, the SAE's error kept; or a
share α of the direction's component is taken out."""

Unit = Literal["vector", "norm", "sd", "max"]
"""What a strength of 1 is. Of an addition: the vector itself (of a fitted detector: from the mean of the negatives to that of the positives, along its
direction); the length of each token's own activation; the standard deviation of the detector's scores within the classes. Of a clamp: the highest value."""

Steered = Literal["generated", "prompt", "all"]
"""Which tokens are touched: those from which the answer is predicted (the prompt's last token, and each token that is generated, as in contrastive activation
addition, Rimsky et al. 2023); the prompt's tokens without attention sinks; or both."""

DoseQuantity = Literal["slope", "change", "smallest_step", "sign_reversal"]
SideQuantity = Literal["kl", "loss_change", "repetition_change", "capability_change"]


def is_dose(quantity: DoseQuantity | SideQuantity) -> TypeGuard[DoseQuantity]:
    """Whether it is a quantity of the effect."""
    return quantity in get_args(DoseQuantity)


def is_side(quantity: DoseQuantity | SideQuantity) -> TypeGuard[SideQuantity]:
    """Whether it is a quantity of what else changes."""
    return quantity in get_args(SideQuantity)


_OF_THE_STREAM: Final = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")

MOST_STRENGTHS: Final = 32
MOST_LAYERS: Final = 64
_LARGEST: Final = 3.4e38


@dataclass(frozen=True)
class SteerSpec:
    """One experiment: an action along a detector at each of the strengths, ascending and without 0, on every prompt of a suite, and its effect.

    `everywhere`: at every hook point that writes to the residual stream, not only where the detector reads. `profile`: depths at which the same is done once
    more, for the report.
    """

    detector: DetectorSpec
    suite: Suite
    effect: EffectSpec
    action: Action
    strengths: tuple[float, ...]
    unit: Unit
    tokens: Steered | Tokens
    everywhere: bool = False
    profile: tuple[float, ...] = ()
    controls: bool = True

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        return {
            "detector": self.detector.digest,
            "suite": describe_suite(self.suite),
            "effect": self.effect.describe(),
            "action": self.action,
            "strengths": list(self.strengths),
            "unit": self.unit,
            "tokens": self.tokens if isinstance(self.tokens, str) else self.tokens.describe(),
            "everywhere": self.everywhere,
            "profile": list(self.profile),
            "controls": self.controls,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the description."""
        return digest_of(self.describe())

    def acts_as(self, other: "SteerSpec") -> bool:
        """Whether it does the same to the model, on whatever prompts and to whatever effect."""
        return all(getattr(self, name) == getattr(other, name) for name in ("detector", "action", "strengths", "unit", "tokens", "everywhere"))

    def differs_in_effect(self, other: "SteerSpec") -> bool:
        """Whether it does the same to the model on the same prompts, with the same controls."""
        return self.acts_as(other) and self.suite == other.suite and self.controls == other.controls

    @property
    def origin(self) -> bool:
        """Whether the model as it is stands for the strength 0."""
        return self.action != "clamp"

    def __str__(self) -> str:
        done = {"add": "steered along", "clamp": "with clamped", "project_out": "without"}[self.action]
        return f"{self.suite.name} {done} {self.detector.name}, {self.effect}"


@dataclass(frozen=True)
class DoseSpec:
    """A quantity to be estimated from an experiment; `strength` of those that are of one. `over_null`: its excess over that of directions with nothing to find.
    `neutral` is the suite on which a side effect is measured."""

    reading: SteerSpec
    quantity: DoseQuantity | SideQuantity
    strength: float | None = None
    over_null: bool = False
    neutral: Suite | None = None
    pairs: None = None

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        return {
            "steering": self.reading.describe(),
            "quantity": self.quantity,
            "strength": self.strength,
            "over_null": self.over_null,
            "neutral": None if self.neutral is None else describe_suite(self.neutral),
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the description."""
        return digest_of(self.describe())

    def __str__(self) -> str:
        at = "" if self.strength is None or self.reading.action == "project_out" else f" at {self.strength:g}"
        on = "" if self.neutral is None else f" on {self.neutral.name}"
        return f"{self.reading}: {self.quantity}(){at}{on}"


def steer_spec(
    detector: object,
    suite: object,
    effect: object,
    strengths: object,
    *,
    unit: str | None,
    tokens: object,
    profile: Iterable[float],
    controls: bool,
) -> SteerSpec:
    """The spec of `Auditor.steer`, checked. Raises PlanError as it does."""
    where = f"model.steer({getattr(detector, 'name', detector)}, …)"
    detector, suite, effect = _checked(detector, suite, effect, where)
    is_latent = isinstance(detector, LatentSpec)
    chosen = unit if unit is not None else "max" if is_latent else "vector"
    allowed = ("max",) if is_latent else ("vector", "norm", "sd")
    if chosen not in allowed:
        raise PlanError(f"{where}: unit={unit!r}; of {'latents' if is_latent else 'directions'} known are {', '.join(allowed)}")
    if chosen == "sd" and detector.fit is None:
        raise PlanError(f"{where}: unit='sd' is that of the scores on the suite that the detector is fitted on, and it has none; use 'vector' or 'norm'")
    _require_flag(controls, "controls", where)
    doses = _strengths(strengths, where, zero=is_latent)
    depths = _depths(profile, where)
    if is_latent and depths:
        raise PlanError(f"{where}: latents are those of one layer's SAE; leave profile= out")
    return SteerSpec(detector, suite, effect, "clamp" if is_latent else "add", doses, chosen, _tokens(tokens, where), False, depths, controls)  # type: ignore[arg-type]


def ablate_spec(detector: object, suite: object, effect: object, *, everywhere: bool | None, tokens: object, controls: bool) -> SteerSpec:
    """The spec of `Auditor.ablate`, checked. Raises PlanError as it does."""
    where = f"model.ablate({getattr(detector, 'name', detector)}, …)"
    detector, suite, effect = _checked(detector, suite, effect, where)
    _require_flag(controls, "controls", where)
    if everywhere is not None:
        _require_flag(everywhere, "everywhere", where)
    if isinstance(detector, LatentSpec):
        if everywhere:
            raise PlanError(f"{where}: latents are clamped to 0 where their SAE encodes, not everywhere; leave everywhere= out")
        return SteerSpec(detector, suite, effect, "clamp", (0.0,), "max", _tokens(tokens, where), False, (), controls)
    spread = everywhere if everywhere is not None else True
    if spread and detector.point not in _OF_THE_STREAM:
        raise PlanError(
            f"{where}: directions at {detector.point} are not those of the residual stream, so they can't be taken out everywhere: everywhere=False"
        )
    return SteerSpec(detector, suite, effect, "project_out", (1.0,), "vector", _tokens(tokens, where), spread, (), controls)


def _checked(detector: object, suite: object, effect: object, where: str) -> tuple[DetectorSpec, Suite, EffectSpec]:
    if not isinstance(detector, DetectorSpec):
        raise PlanError(f"{where}: the first argument is a detector made with mi.probe, mi.sweep, mi.direction or mi.latent")
    if not isinstance(suite, Suite):
        raise PlanError(f"{where}: on={suite!r}; give a suite made with mi.suite(…)")
    if len(suite) == 0:
        raise PlanError(f"{where}: the suite {suite.name} is empty; nothing is shown by no prompts")
    if not isinstance(effect, EffectSpec):
        raise PlanError(f"{where}: effect={effect!r}; give one of mi.effects, e.g. mi.effects.refusal()")
    if isinstance(detector, LatentSpec) and (detector.sae.config.is_transcoder or detector.sae.config.is_contextual):
        raise PlanError(f"{where}: latents of the architecture {detector.sae.config.architecture!r} can't be clamped; steer along a direction instead")
    read = effect.detector
    if read == detector:
        raise PlanError(
            f"{where}: {effect} is its own, which it moves whatever the model does with it; read a detector at a later layer, or what the model says"
        )
    if isinstance(read, LatentSpec) and read.sae.config.is_contextual:
        raise PlanError(f"{where}: {effect} is of latents of the architecture {read.sae.config.architecture!r}, which take whole prompts; read a probe there")
    require_groups(suite, where)
    require_texts(suite, _fields(effect), f"{where}: {effect}")
    return detector, suite, effect


def require_groups(suite: Suite, where: str) -> None:
    """Raises PlanError, which `where` begins, if all prompts are in one group: the error of a mean can't be seen then."""
    if len(set(suite.groups())) < 2:
        raise PlanError(f"{where}: all prompts of {suite.name} are in one group, so that the error of a change can't be seen; add groups")


def require_texts(suite: Suite, names: Sequence[str], where: str) -> None:
    """Raises PlanError, which `where` begins, if a prompt has no such field, or one that holds no text: an answer without tokens would be certain."""
    for prompt in suite:
        for name in names:
            try:
                value = prompt.field(name)
            except SuiteError as error:
                raise PlanError(f"{where}: {error}") from error
            if not isinstance(value, str) or not value:
                raise PlanError(f"{where}: the field {name!r} of prompt {prompt.id!r} holds {value!r}, no text")


def _fields(effect: EffectSpec) -> Sequence[str]:
    given = dict(effect.arguments)
    match effect.name:
        case "log_likelihood":
            return (str(given["answer"]),)
        case "choice":
            wrong = given["wrong"]
            return (str(given["right"]), *(wrong if isinstance(wrong, tuple) else ()))
        case _:
            return ()


def _require_flag(given: object, name: str, where: str) -> None:
    if not isinstance(given, bool):
        raise PlanError(f"{where}: {name}={given!r}; give True or False")


def _strengths(given: object, where: str, *, zero: bool) -> tuple[float, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise PlanError(f"{where}: strengths={given!r}; give numbers such as (-2, -1, 1, 2)")
    numbers = tuple(given)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise PlanError(f"{where}: the strength {number!r} is no finite number")
        if abs(number) > _LARGEST:
            raise PlanError(f"{where}: the strength {number!r} is more than float32 holds; give smaller ones")
        if number == 0 and not zero:
            raise PlanError(f"{where}: the strength 0 is the model as it is, which is always measured; leave it out")
    if not numbers or len(numbers) > MOST_STRENGTHS or len(set(numbers)) < len(numbers):
        raise PlanError(f"{where}: give 1 to {MOST_STRENGTHS} different strengths, not {len(numbers)} of which {len(set(numbers))} differ")
    return tuple(sorted(float(number) for number in numbers))


def _tokens(given: object, where: str) -> Steered | Tokens:
    if isinstance(given, Tokens):
        return given
    if given in get_args(Steered):
        return given  # type: ignore[return-value]  # one of the literals
    raise PlanError(f"{where}: tokens={given!r}; known are {', '.join(get_args(Steered))}, mi.span(start, end) and mi.last_of(field)")


def _depths(given: object, where: str) -> tuple[float, ...]:
    if not isinstance(given, Iterable):
        raise PlanError(f"{where}: profile={given!r}; give depths such as (0.25, 0.5, 0.75)")
    depths = tuple(given)
    if any(isinstance(depth, bool) or not isinstance(depth, int | float) or not 0 <= depth <= 1 for depth in depths) or len(depths) > MOST_LAYERS:
        raise PlanError(f"{where}: profile={depths!r}; give at most {MOST_LAYERS} depths from 0 to 1")
    return tuple(sorted({float(depth) for depth in depths}))
