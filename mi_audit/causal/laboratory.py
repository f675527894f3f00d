"""From what a plan asks of experiments to what they gave, and to estimates."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from mi_audit.causal.data import ExperimentData
from mi_audit.causal.highest import corpus_of
from mi_audit.detectors.bench import Bench
from mi_audit.detectors.controls import SHUFFLED
from mi_audit.engine.progress import Progress
from mi_audit.errors import DetectorError
from mi_audit.model.audited import AuditedModel
from mi_audit.plan.latents import LatentSpec
from mi_audit.plan.measurements import Measured
from mi_audit.plan.steering import DoseSpec, SideQuantity, SteerSpec, is_dose, is_side
from mi_audit.stats.checks import Floats
from mi_audit.stats.controls import Controls
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.side_effects import side_effect
from mi_audit.suites.suite import Suite

if TYPE_CHECKING:
    from mi_audit.causal.making import Maker

SideKey = tuple[SteerSpec, SideQuantity, Suite]


class Laboratory:
    """Makes experiments on one model, each once; what its detectors learned comes from the bench.

    Args:
        bench: of the same model.
        model: the model under audit.
        alpha: the one-sided level of every bound; also sets how many draws a null takes.
        seed: of the run.
        limit: at most so many prompts of each suite.
        progress: hears of the passes.

    Every method may raise what the rooms below raise: HookPointError, PromptError, DetectorError, StatisticsError.
    """

    def __init__(self, bench: Bench, model: AuditedModel, *, alpha: float, seed: int, limit: int | None = None, progress: Progress | None = None) -> None:
        self._bench, self._model, self._alpha, self._seed, self._limit, self._progress = bench, model, alpha, seed, limit, progress
        self._made: dict[SteerSpec, ExperimentData] = {}
        self._side: dict[SideKey, tuple[Suite, Floats, Floats]] = {}
        self._expected: tuple[SteerSpec, ...] = ()

    def expect(self, specs: Iterable[SteerSpec]) -> None:
        """Hear which experiments will be asked for, so that those that differ in the effect alone share passes."""
        self._expected = tuple(specs)

    def estimate(self, spec: Measured) -> Estimate:
        """A quantity of a reading or of an experiment, with its interval and controls."""
        if not isinstance(spec, DoseSpec):
            return self._bench.estimate(spec)
        estimate = self._side_effect(spec) if spec.neutral is not None else self._dose(spec)
        undecided = (*estimate.undecided, *self._untrusted(spec.reading))
        if self._model.is_low_precision:
            undecided = (*undecided, "experiments in low precision are not held against float32; run with --audit-dtype float32 to decide")
        return replace(estimate, of=str(spec.reading), spec=spec, undecided=undecided)

    @property
    def begun(self) -> Mapping[SteerSpec, ExperimentData]:
        """Experiments that were made, or begun and broken off."""
        return self._made

    def experiment(self, spec: SteerSpec) -> ExperimentData:
        """What an experiment gave.

        Raises:
            DetectorError: it was not finished, or a strength of it failed; what was measured of it is in `begun`.
        """
        if spec not in self._made:
            suite = spec.suite if self._limit is None else spec.suite.head(self._limit)
            beside = [other for other in self._expected if other not in self._made and other != spec and other.differs_in_effect(spec)]
            self._maker.make(spec, suite, lambda made: self._made.__setitem__(spec, made), beside)
        made = self._made[spec]
        if made.error is not None:
            raise DetectorError(f"{spec}: {made.error}")
        return made

    def corpus(self, spec: SteerSpec) -> str | None:
        """The suite on which the highest values of clamped latents were found; None for a vector."""
        return corpus_of(spec.detector).name if isinstance(spec.detector, LatentSpec) else None

    def side_effects(self, spec: SteerSpec) -> Iterable[tuple[SideQuantity, Suite, Mapping[float, Estimate]]]:
        """What was measured of an experiment besides its effect: quantity, suite, and the estimate at each strength."""
        for (of, quantity, _), (suite, _, changes) in self._side.items():
            if of == spec:
                strengths = self._made[spec].strengths
                yield quantity, suite, {strength: self._estimated(quantity, suite, changes[row]) for row, strength in enumerate(strengths)}

    def measured_on(self, spec: DoseSpec) -> Suite:
        """The prompts of which a quantity was estimated, after any limit."""
        if spec.neutral is None:
            return self.experiment(spec.reading).suite
        assert is_side(spec.quantity)
        return self._side[spec.reading, spec.quantity, spec.neutral][0]

    def side_values(self, spec: SteerSpec) -> Iterable[tuple[SideQuantity, Suite, Floats, Floats]]:
        """The numbers behind `side_effects`: of the model as it is [n], and their changes [S, n]."""
        return ((quantity, suite, base, changes) for (of, quantity, _), (suite, base, changes) in self._side.items() if of == spec)

    def _untrusted(self, spec: SteerSpec) -> tuple[str, ...]:
        """Why nothing can be decided on latents: their SAE does not stand for the model, or too many of those that they are held against change nothing."""
        quality = self._bench.sae_quality(spec)
        return () if quality is None else (*quality.below, *self._made[spec].idle_nulls(self._alpha))

    def _dose(self, spec: DoseSpec) -> Estimate:
        made = self.experiment(spec.reading)
        self._require(made, spec)
        assert is_dose(spec.quantity)
        active = {name: draws for name in made.nulls if len(draws := made.active(name))}
        dose, decisive = made.dose, active.get(SHUFFLED, next(iter(active.values()), None))
        if spec.over_null:
            if decisive is None:
                raise DetectorError(f"{spec}: none of the draws that it is held against changes anything on these prompts; take others")
            estimate = dose.excess(spec.quantity, decisive, spec.strength, alpha=self._alpha)
        else:
            estimate = dose.estimate(spec.quantity, spec.strength, alpha=self._alpha)
        nulls = tuple(dose.null(name, spec.quantity, draws, spec.strength, alpha=self._alpha) for name, draws in active.items())
        return replace(estimate, controls=Controls(nulls) if nulls else None)

    def _side_effect(self, spec: DoseSpec) -> Estimate:
        assert spec.neutral is not None and spec.strength is not None
        assert is_side(spec.quantity)
        made = self.experiment(spec.reading)
        self._require(made, spec)
        key = (spec.reading, spec.quantity, spec.neutral)
        if key not in self._side:
            self._side[key] = self._measured_beside(made, spec.quantity, spec.neutral)
        suite, _, changes = self._side[key]
        return self._estimated(spec.quantity, suite, changes[made.strengths.index(spec.strength)])

    def _estimated(self, quantity: SideQuantity, suite: Suite, values: Floats) -> Estimate:
        return side_effect(quantity, values, suite.groups(), alpha=self._alpha)

    def _require(self, made: ExperimentData, spec: DoseSpec) -> None:
        """A claim rests on all strengths that were declared, or on its own."""
        lacking = [strength for strength in made.failed if spec.strength is None or strength == spec.strength]
        if lacking:
            raise DetectorError(f"{made.spec}: {made.failed[lacking[0]]}")

    def _measured_beside(self, made: ExperimentData, quantity: SideQuantity, neutral: Suite) -> tuple[Suite, Floats, Floats]:
        limited = neutral if self._limit is None else neutral.head(self._limit)
        suite = limited.one_per_group()  # n is counted in groups: more prompts of one would cost more than they tell
        for (of, known, on), (_, base, changes) in self._side.items():  # another experiment may have done the same to the model
            if (known, on) == (quantity, neutral) and of.acts_as(made.spec) and self._made[of].strengths == made.strengths:
                return suite, base, changes
        return suite, *self._maker.beside(made, quantity, suite)

    @cached_property
    def _maker(self) -> "Maker":
        """Loads the weights."""
        from mi_audit.causal.making import Maker

        return Maker(self._bench, self._model.loaded(), self._alpha, self._seed, self._progress)
