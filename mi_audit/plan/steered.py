"""What an audit's body works with after `model.steer` and `model.ablate`: quantities of an experiment that are worth claiming something of.

As of readings, the same classes serve the run and the trace.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NoReturn

from mi_audit.errors import PlanError
from mi_audit.plan.leaks import leak_in, repeat_in
from mi_audit.plan.steering import DoseQuantity, DoseSpec, SideQuantity, SteerSpec, require_groups, require_texts
from mi_audit.stats.estimate import Estimate, NullLevel
from mi_audit.suites.suite import Suite, suite

EvaluateDose = Callable[[DoseSpec], Estimate]


class _Claimable:
    """Names what can be claimed where something else is asked for."""

    _known: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise PlanError(f"there is no {name!r} here; known are {', '.join(self._known)}")


class SideEffects(_Claimable):
    """What an experiment does to a model at one strength besides its effect, on neutral text or neutral questions, of which one prompt of each group is taken.

    Divergence and loss are those of a prompt's first 64 tokens, all of which are touched but attention sinks; elsewhere those are that the experiment touches.
    """

    _known = ("kl()", "loss_change()", "repetition_change()", "capability_change()")

    def __init__(self, spec: SteerSpec, strength: float, neutral: Suite, evaluate: EvaluateDose) -> None:
        self._spec, self._strength, self._neutral, self._evaluate = spec, strength, neutral, evaluate

    def kl(self) -> Estimate:
        """KL divergence of the changed model's next-token distributions from the model's own, KL(own‖changed), in nats per token, the mean over prompts."""
        return self._of("kl")

    def loss_change(self) -> Estimate:
        """Loss per token with the change less that without, in nats, the mean over prompts: the logarithm of the perplexity's factor."""
        return self._of("loss_change")

    def repetition_change(self) -> Estimate:
        """Share of repeated 4-grams in what the model writes after each prompt, with the change less without (Welleck et al. 2020, arXiv 1908.04319)."""
        return self._of("repetition_change")

    def capability_change(self) -> Estimate:
        """Of the suite's questions, which have fields `answer` and `other`, the share whose answer is likelier than the other, with the change less without.

        Raises:
            PlanError: a prompt of the suite has no such fields, no texts in them, or the same text in both.
        """
        where = f"capability_change() on {self._neutral.name}"
        require_texts(self._neutral, ("answer", "other"), where)
        if same := next((prompt for prompt in self._neutral if prompt.field("answer") == prompt.field("other")), None):
            raise PlanError(f"{where}: the fields 'answer' and 'other' of prompt {same.id!r} hold the same text, so it asks nothing; mend it, or leave it out")
        return self._of("capability_change")

    def _of(self, quantity: SideQuantity) -> Estimate:
        return self._evaluate(DoseSpec(self._spec, quantity, self._strength, neutral=self._neutral))


class AtStrength(_Claimable):
    """An experiment at one of its strengths."""

    _known = ("change()", "null", "side_effects(on=…)")

    def __init__(self, spec: SteerSpec, strength: float, evaluate: EvaluateDose) -> None:
        self._spec, self._strength, self._evaluate = spec, strength, evaluate

    def change(self) -> Estimate:
        """Mean over prompts of the effect at this strength less that of the model as it is."""
        return self._evaluate(DoseSpec(self._spec, "change", self._strength))

    @property
    def null(self) -> "NullChange":
        """What directions with nothing to find give at this strength."""
        return NullChange(self._spec, self._strength, self._evaluate)

    def side_effects(self, on: Suite | None = None) -> SideEffects:
        """What else changes at this strength.

        Args:
            on: neutral text, or neutral questions; by default the shipped `neutral_text`. It shares no prompt or group with what the detector has seen.

        Raises:
            PlanError: not a suite, an empty one, one that repeats a prompt across groups, or one that the detector has seen.
        """
        neutral = suite("neutral_text") if on is None else on
        if not isinstance(neutral, Suite) or len(neutral) == 0:
            raise PlanError(f"side_effects(on={on!r}): give a suite of neutral text, such as mi.suite('neutral_text'), with at least one prompt")
        if flaw := leak_in(self._spec.detector, neutral, answered=False) or repeat_in(neutral):
            raise PlanError(flaw)
        require_groups(neutral, f"side_effects(on={neutral.name})")
        return SideEffects(self._spec, self._strength, neutral, self._evaluate)


@dataclass(frozen=True)
class NullChange:
    """The null of an experiment at one strength."""

    spec: SteerSpec
    strength: float
    evaluate: EvaluateDose

    def change(self) -> NullLevel:
        """The null's level of `change()`."""
        return _level(DoseSpec(self.spec, "change", self.strength), self.evaluate)


@dataclass(frozen=True)
class SteeringNull:
    """What directions give that have nothing to find: fitted to shuffled labels, or drawn where activations vary; for latents, others that fire as often.

    `sweep.slope() > sweep.null.slope()` claims that the mean over prompts of the slope, less that over the null's draws (those on shuffled labels where the
    detector was fitted), is above 0 by its whole interval, and that at most a share alpha of the draws of each null reach it.
    """

    spec: SteerSpec
    evaluate: EvaluateDose

    def slope(self) -> NullLevel:
        """The null's level of `slope()`."""
        return self._level("slope")

    def smallest_step(self) -> NullLevel:
        """The null's level of `smallest_step()`."""
        return self._level("smallest_step")

    def sign_reversal(self) -> NullLevel:
        """The null's level of `sign_reversal()`."""
        return self._level("sign_reversal")

    def _level(self, quantity: DoseQuantity) -> NullLevel:
        _require_doses(self.spec, quantity)
        return _level(DoseSpec(self.spec, quantity), self.evaluate)


class Sweep(_Claimable):
    """An experiment at several strengths. Each method returns an `Estimate`; compare it with a number, or with the null's, to make a claim.

    A claim that there is an effect passes only where it beats the null too. All intervals are paired by prompt and cluster-robust.
    """

    _known = ("slope()", "smallest_step()", "sign_reversal()", "at(strength)", "null")

    def __init__(self, spec: SteerSpec, evaluate: EvaluateDose) -> None:
        self.spec = spec
        self._evaluate = evaluate

    def slope(self) -> Estimate:
        """Mean over prompts of the slope of the effect on the strength, by least squares."""
        return self._of("slope")

    def smallest_step(self) -> Estimate:
        """The smallest mean rise of the effect from one strength to the next; above 0 the dose–response rises monotonically."""
        return self._of("smallest_step")

    def sign_reversal(self) -> Estimate:
        """The smaller of the mean rise at the highest strength and the mean fall at the lowest; above 0 the handle works both ways."""
        return self._of("sign_reversal")

    def at(self, strength: float) -> AtStrength:
        """The experiment at one of its strengths.

        Raises:
            PlanError: a strength that is not measured.
        """
        if strength not in self.spec.strengths:
            raise PlanError(f"at({strength!r}): measured are the strengths {', '.join(f'{each:g}' for each in self.spec.strengths)}")
        return AtStrength(self.spec, float(strength), self._evaluate)

    @property
    def null(self) -> SteeringNull:
        """What directions with nothing to find give."""
        return SteeringNull(self.spec, self._evaluate)

    def _of(self, quantity: DoseQuantity) -> Estimate:
        _require_doses(self.spec, quantity)
        return self._evaluate(DoseSpec(self.spec, quantity))


class Ablation(_Claimable):
    """An ablation: the effect without a direction or without latents, beside that of the model as it is."""

    _known = ("change()", "null", "side_effects(on=…)")

    def __init__(self, spec: SteerSpec, evaluate: EvaluateDose) -> None:
        self.spec = spec
        self._at = AtStrength(spec, spec.strengths[0], evaluate)

    def change(self) -> Estimate:
        """Mean over prompts of the effect with the ablation less that without."""
        return self._at.change()

    @property
    def null(self) -> NullChange:
        """What the ablation of directions with nothing to find gives."""
        return self._at.null

    def side_effects(self, on: Suite | None = None) -> SideEffects:
        """What else changes; see `AtStrength.side_effects`."""
        return self._at.side_effects(on)


def _level(spec: DoseSpec, evaluate: EvaluateDose) -> NullLevel:
    if not spec.reading.controls:
        raise PlanError(f"null.{spec.quantity}() of {spec.reading}: with controls=False there is no null to compare with; leave it out")
    return NullLevel(evaluate(replace(spec, over_null=True)), spec, spec.quantity)


def _require_doses(spec: SteerSpec, quantity: DoseQuantity) -> None:
    needed = 1 if spec.origin else 2
    if quantity in ("slope", "smallest_step") and len(spec.strengths) < needed:
        raise PlanError(f"{quantity}() of {spec}: it takes at least {needed} strengths")
    if quantity == "sign_reversal" and not spec.strengths[0] < 0 < spec.strengths[-1]:
        raise PlanError(
            f"sign_reversal() of {spec}: it takes a strength below 0 and one above; measured are {', '.join(f'{each:g}' for each in spec.strengths)}"
        )
