"""What the `model` fixture and `mi.load_model` hand out: a face over the rooms that measure, with no logic of its own."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mi_audit.errors import PlanError
from mi_audit.plan.detectors import DetectorSpec
from mi_audit.plan.effects import EffectSpec
from mi_audit.plan.leaks import leak_in, leak_inside, repeat_in, turned_round
from mi_audit.plan.measurements import ReadSpec
from mi_audit.plan.places import Tokens
from mi_audit.plan.reading import Attribute, Evaluate, Reading
from mi_audit.plan.steered import Ablation, Sweep
from mi_audit.plan.steering import Steered, SteerSpec, Unit, ablate_spec, steer_spec
from mi_audit.suites.suite import Suite

if TYPE_CHECKING:
    from mi_audit.model.identity import ModelIdentity


class Auditor:
    """The model under audit. `read` a detector on a suite, `steer` along it or `ablate` it, then claim something of what came out.

    The same object serves a run and the planning of it; while planning there is no model and estimates have no values.
    """

    def __init__(self, evaluate: Evaluate, attribute: Attribute, identity: "ModelIdentity | None" = None) -> None:
        self._evaluate, self._attribute = evaluate, attribute
        self._identity = identity

    @property
    def identity(self) -> "ModelIdentity":
        """What was loaded: digests of every file, architecture, versions. Not known while an audit is planned.

        Raises:
            PlanError: asked for in an audit's body, which runs before any model loads.
        """
        if self._identity is None:
            raise PlanError("model.identity is asked for while planning; an audit's body runs before any model loads and may only claim")
        return self._identity

    def read(self, detector: DetectorSpec, suite: Suite, *, controls: bool = True) -> Reading:
        """Read a detector on every prompt of a suite.

        Args:
            detector: from `mi.probe`, `mi.sweep`, `mi.direction`, `mi.latent` or `mi.latent_group`.
            suite: from `mi.suite`; it may share no prompt with what the detector was fitted or calibrated on or its layer chosen by, and no group with it
                where both were cut from one suite; groups of separately loaded suites are not compared, since the same name may mean different things.
            controls: whether nulls and baselines are computed; without them a claim that the detector tells classes apart is at best inconclusive.

        Raises:
            PlanError: an argument is of the wrong kind, the suite is empty, repeats a prompt across groups, turns the positive class round, or shares prompts
                or groups with what the detector has seen.
        """
        if not isinstance(detector, DetectorSpec):
            raise PlanError(f"model.read({detector!r}, …): the first argument is a detector made with mi.probe, mi.sweep, mi.direction or mi.latent")
        if not isinstance(suite, Suite):
            raise PlanError(f"model.read({detector.name}, {suite!r}): the second argument is a suite made with mi.suite(…)")
        if not isinstance(controls, bool):
            raise PlanError(f"model.read({detector.name}, {suite.name}): controls={controls!r}; give True or False")
        if len(suite) == 0:
            raise PlanError(f"model.read({detector.name}, {suite.name}): the suite is empty; nothing is shown by no prompts")
        spec = ReadSpec(detector, suite, controls)
        flaw = leak_inside(detector) or leak_in(detector, suite) or repeat_in(suite) or turned_round(spec)
        if flaw:
            raise PlanError(flaw)
        return Reading(spec, self._evaluate, self._attribute)

    def steer(
        self,
        detector: DetectorSpec,
        *,
        on: Suite,
        strengths: Iterable[float],
        effect: EffectSpec,
        unit: Unit | None = None,
        tokens: Steered | Tokens = "generated",
        profile: Iterable[float] = (),
        controls: bool = True,
    ) -> Sweep:
        """Push the model along a detector's direction, or clamp its latents, and measure an effect: does what is read drive what the model does?

        Activation addition (Turner et al. 2023, arXiv 2308.10248; Rimsky et al. 2023, arXiv 2312.06681): h + α·v where the detector reads. Latents are clamped
        to α times their highest value on the first suite that they were found on, or on `neutral_text` (its first 200 prompts), and the SAE's error is kept
        (Templeton et al. 2024, Scaling Monosemanticity).

        Args:
            detector: from `mi.probe`, `mi.sweep`, `mi.direction`, `mi.latent` or `mi.latent_group`.
            on: a suite that shares no prompt or group with what the detector has seen. Prompts that hold a response leave nothing to be generated: they take
                "prompt", `mi.span(…)` or `mi.last_of(…)` as `tokens`.
            strengths: α, at most 32 of them, of either sign. Leave out 0 of a direction: the model as it is is always measured. Latents at 0 are ablated.
            effect: one of `mi.effects`.
            unit: what α = 1 adds: "vector", the vector itself (of a fitted detector, from the mean of its negatives to that of its positives along its
                direction); "norm", as long as each token's own activation; "sd", a standard deviation of its scores within the classes. Of latents it is "max".
            tokens: which tokens are touched: "generated" (the prompt's last, from which the first generated token is predicted, and each that is generated),
                "prompt" (its tokens without attention sinks), "all" (both), `mi.span(…)` or `mi.last_of(…)`.
            profile: depths from 0 to 1 at which the same is done for the report, to show where the handle works; no claim rests on it. Not of latents.
            controls: whether the same is done with nothing to find: along directions that are refitted on shuffled labels, drawn with the covariance of the
                activations or, for a direction that was found elsewhere, isotropic ones, all as long as the detector's; with other latents that fire as often.
                Without them no claim of an effect passes.

        Raises:
            PlanError: an argument is of the wrong kind or of no use; the suite is empty, repeats a prompt across groups, turns the positive class round, lacks
                a field that the effect names, or was seen by the detector or by that of the effect.
        """
        return Sweep(
            self._experiment(steer_spec(detector, on, effect, strengths, unit=unit, tokens=tokens, profile=profile, controls=controls)), self._evaluate
        )

    def ablate(
        self,
        detector: DetectorSpec,
        *,
        on: Suite,
        effect: EffectSpec,
        everywhere: bool | None = None,
        tokens: Steered | Tokens = "generated",
        controls: bool = True,
    ) -> Ablation:
        """Take a detector's direction, or its latents, away and measure an effect: is what is read necessary for what the model does?

        Directional ablation (Arditi et al. 2024, arXiv 2406.11717): h − (h·r)r wherever the residual stream is written, or only where the detector reads.
        Latents are clamped to 0, and the SAE's error is kept.

        Args:
            detector: as for `steer`.
            on: as for `steer`.
            effect: one of `mi.effects`.
            everywhere: whether a direction is taken out of the embedding and of all that attention and feed-forward write, so that no later layer brings it
                back; the default for directions. Not of latents.
            tokens: as for `steer`.
            controls: as for `steer`; the directions, or the other latents, are taken away instead.

        Raises:
            PlanError: as `steer`; or a direction that is not of the residual stream's width is to be taken out everywhere.
        """
        return Ablation(self._experiment(ablate_spec(detector, on, effect, everywhere=everywhere, tokens=tokens, controls=controls)), self._evaluate)

    def _experiment(self, spec: SteerSpec) -> SteerSpec:
        read = spec.effect.detector
        flaw = leak_inside(spec.detector) or leak_in(spec.detector, spec.suite, answered=False) or repeat_in(spec.suite) or turned_round(spec)
        flaw = flaw or (None if read is None else leak_inside(read) or leak_in(read, spec.suite, answered=False))
        if flaw:
            raise PlanError(flaw)
        return spec

    def __repr__(self) -> str:
        return f"<Auditor of {self._identity.ref}>" if self._identity else "<Auditor, planning>"
