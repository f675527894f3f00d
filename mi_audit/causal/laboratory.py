"""From what a plan asks of experiments to what they gave, and to estimates."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import numpy as np

from mi_audit.causal.arms import Instrument, written
from mi_audit.causal.data import ExperimentData, Layer, Written
from mi_audit.causal.effect import OfDetector
from mi_audit.causal.handles import Clamps, Handle, Vectors, clamps_of, vectors_of
from mi_audit.causal.highest import corpus_of, highest_values
from mi_audit.causal.rows import Additions, Clampings, Projections, Rows
from mi_audit.causal.side_effects import side_effect
from mi_audit.causal.tasks import Asked, asked, tokenizer_of
from mi_audit.detectors.bench import Bench
from mi_audit.detectors.controls import SHUFFLED, stream
from mi_audit.detectors.latents import LearnedLatents
from mi_audit.engine.progress import Progress
from mi_audit.engine.site import Site
from mi_audit.engine.variants import how_passed
from mi_audit.errors import DetectorError, HookPointError, NotFiniteError
from mi_audit.model.audited import AuditedModel
from mi_audit.plan.digest import Json
from mi_audit.plan.latents import LatentSpec
from mi_audit.plan.measurements import Measured
from mi_audit.plan.places import At, Tokens
from mi_audit.plan.steering import DoseSpec, SideQuantity, SteerSpec, is_dose, is_side
from mi_audit.plugins import active
from mi_audit.stats.checks import Floats
from mi_audit.stats.controls import Controls
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.side_effects import side_effect as estimate_side_effect
from mi_audit.suites.suite import Suite

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

SHOWN: Final = 3
"""Prompts after which the model writes, for the report."""
WRITTEN: Final = 32
"""Tokens that it writes."""

_WRITERS: Final = ("attn_out", "mlp_out")

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
        self._asked: dict[SteerSpec, list[Asked]] = {}
        self._side: dict[SideKey, tuple[Suite, Floats, Floats]] = {}

    def estimate(self, spec: Measured) -> Estimate:
        """A quantity of a reading or of an experiment, with its interval and controls."""
        if not isinstance(spec, DoseSpec):
            return self._bench.estimate(spec)
        estimate = self._side_effect(spec) if spec.neutral is not None else self._dose(spec)
        undecided = estimate.undecided
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
            self._make(spec)
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

    def _dose(self, spec: DoseSpec) -> Estimate:
        made = self.experiment(spec.reading)
        self._require(made, spec)
        assert is_dose(spec.quantity)
        dose, decisive = made.dose, made.nulls.get(SHUFFLED, next(iter(made.nulls.values()), None))
        if spec.over_null:
            if decisive is None:
                raise DetectorError(f"{spec}: without controls there is no null to compare with; leave controls=False out")
            estimate = dose.excess(spec.quantity, decisive, spec.strength, alpha=self._alpha)
        else:
            estimate = dose.estimate(spec.quantity, spec.strength, alpha=self._alpha)
        nulls = tuple(dose.null(name, spec.quantity, draws, spec.strength, alpha=self._alpha) for name, draws in made.nulls.items())
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
        return estimate_side_effect(quantity, values, suite.groups(), alpha=self._alpha)

    def _require(self, made: ExperimentData, spec: DoseSpec) -> None:
        """A claim rests on all strengths that were declared, or on its own."""
        lacking = [strength for strength in made.failed if spec.strength is None or strength == spec.strength]
        if lacking:
            raise DetectorError(f"{made.spec}: {made.failed[lacking[0]]}")

    def _measured_beside(self, made: ExperimentData, quantity: SideQuantity, neutral: Suite) -> tuple[Suite, Floats, Floats]:
        model, spec = self._model.loaded(), made.spec
        limited = neutral if self._limit is None else neutral.head(self._limit)
        suite = limited.one_per_group()  # n is counted in groups: more prompts of one would cost more than they tell
        rows = self._rows(made, model)
        title = self._titled(f"{quantity} of {spec.detector.name} on {suite.name}")
        base, changes = side_effect(quantity, model, suite.prompts, rows, spec.tokens, made.handle.at, self._bench.cache, title)
        return suite, base, changes

    def _make(self, spec: SteerSpec) -> None:
        """Make an experiment: first along the detector, then along directions with nothing to find, so that what is broken off leaves the dose–response."""
        suite = spec.suite if self._limit is None else spec.suite.head(self._limit)
        handle = self._handle(spec, suite)
        model = self._model.loaded()
        prompts = asked(model, suite.prompts, spec.tokens, handle.at, self._bench.cache)
        instrument, title = self._instrument(spec, model), f"{spec.detector.name} on {suite.name}"
        made = self._along(spec, suite, handle, model, prompts, instrument, title)
        self._made[spec] = made
        try:
            self._made[spec] = self._beside(made, model, prompts, instrument, title)
        except BaseException as error:
            # also Ctrl-C: whoever broke it off finds what was measured before
            self._made[spec] = replace(made, error="interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__)
            raise

    def _along(
        self, spec: SteerSpec, suite: Suite, handle: Handle, model: "LoadedModel", prompts: list[Asked], instrument: Instrument, title: str
    ) -> ExperimentData:
        strengths, failed = list(spec.strengths), dict[float, str]()
        while strengths:
            rows = _rows(spec, handle, _own(handle), tuple(strengths), model)
            try:
                found = instrument.measure(prompts, rows, self._titled(f"steering {title}"))
            except NotFiniteError as error:
                if error.variant is None:  # of the model as it is
                    raise
                strength = strengths.pop(error.variant)
                failed[strength] = f"at the strength {strength:g}, {_where(rows)}: {error}; take smaller strengths"
                continue
            passed = how_passed(model, rows.places[0])
            return ExperimentData(spec, suite, handle, tuple(strengths), found.unsteered, found.values[0], {}, None, failed, passed)
        raise DetectorError(f"{spec}: {next(iter(failed.values()))}")

    def _beside(self, made: ExperimentData, model: "LoadedModel", prompts: list[Asked], instrument: Instrument, title: str) -> ExperimentData:
        """With its nulls, what goes straight to the unembedding, texts for the report and other layers."""
        nulls = self._along_nulls(made, model, prompts, instrument, title)
        direct = self._direct(made, model, prompts, instrument)
        return replace(made, nulls=nulls, direct=direct, written=self._written(made, model, prompts), profile=self._profile(made, model, instrument))

    def _along_nulls(self, made: ExperimentData, model: "LoadedModel", prompts: list[Asked], instrument: Instrument, title: str) -> dict[str, Floats]:
        """The draws of all nulls, which share the passes of the prompts as they are."""
        strengths = made.strengths
        nulls: dict[str, Floats | tuple[tuple[int, ...], ...]] = {**made.handle.nulls}
        if not nulls:
            return {}
        rows = _rows(made.spec, made.handle, _together(list(nulls.values())), strengths, model)
        names = [(name, draw) for name, draws in nulls.items() for draw in range(len(draws))]
        try:
            found = instrument.measure(prompts, rows, self._titled(f"nulls of {title}")).values
        except NotFiniteError as error:
            number, strength = divmod(error.variant or 0, len(strengths))
            name, draw = names[number]
            raise DetectorError(f"{name}, draw {draw}, at the strength {strengths[strength]:g}, {_where(rows)}: {error}") from error
        return {name: found[[which == name for which, _ in names]] for name in nulls}

    def _direct(self, made: ExperimentData, model: "LoadedModel", prompts: list[Asked], instrument: Instrument) -> Floats | None:
        """The effect where the vector is added behind the last block."""
        spec, last = made.spec, At("resid_post", layer=self._model.n_layers - 1)
        vectors = isinstance(made.handle, Vectors) and spec.action == "add" and spec.unit != "norm"
        if not vectors or isinstance(instrument.effect, OfDetector) or len(made.handle.own) != model.d_model or made.handle.at == last:
            return None
        assert isinstance(made.handle, Vectors)
        rows = Additions(last, made.handle.own[None], made.strengths, spec.unit)
        found: Floats = instrument.measure(prompts, rows).values[0]
        return found

    def _written(self, made: ExperimentData, model: "LoadedModel", prompts: list[Asked]) -> tuple[Written, ...]:
        chosen = stream(self._seed, "written", made.spec.digest).choice(len(prompts), min(SHOWN, len(prompts)), replace=False)
        few, rows = [prompts[number] for number in sorted(chosen.tolist())], self._rows(made, model)
        texts = written(model, few, rows, WRITTEN)
        strengths: list[float | None] = [*made.strengths, None]
        return tuple(
            Written(each.prompt.id, strength, texts[row][column])
            for column, each in enumerate(few)
            for row, strength in enumerate(strengths)
            if strength is None or row in (0, len(made.strengths) - 1)
        )

    def _profile(self, made: ExperimentData, model: "LoadedModel", instrument: Instrument) -> tuple[Layer, ...]:
        layers = []
        for depth in made.spec.profile:
            at = At(made.handle.at.point, depth=depth).in_model(self._model.n_layers)
            again = replace(made.spec, detector=made.spec.detector.moved_to(at), controls=False)
            handle = self._handle(again, made.suite)
            taken = asked(model, made.suite.prompts, made.spec.tokens, at, self._bench.cache)
            rows = _rows(again, handle, _own(handle), made.strengths, model)
            layers.append(Layer(at, instrument.measure(taken, rows, self._titled(f"layer {at.layer}, {made.spec.detector.name}")).values[0]))
        return tuple(layers)

    def _handle(self, spec: SteerSpec, suite: Suite) -> Handle:
        learned = self._bench.learned(spec.detector)
        if isinstance(learned, LearnedLatents):
            corpus = corpus_of(learned.spec)
            return clamps_of(spec, learned, highest_values(self._model.loaded(), learned, corpus, self._bench.cache), self._alpha)
        acts = None
        if spec.controls and spec.detector.fit is None:
            acts = self._bench.vectors(suite, Site(learned.detector.at, Tokens("last")))
        return vectors_of(spec, learned, acts, self._alpha, self._seed)

    def _rows(self, made: ExperimentData, model: "LoadedModel") -> Rows:
        return _rows(made.spec, made.handle, _own(made.handle), made.strengths, model)

    def _instrument(self, spec: SteerSpec, model: "LoadedModel") -> Instrument:
        offer = active().effects[spec.effect.name]
        with offer.blamed():
            effect = offer.value(spec.effect, tokenizer_of(model))
        fitted = self._bench.learned(spec.effect.detector).detector if spec.effect.detector is not None else None
        key: dict[str, Json] | None = None
        if spec.effect.function is None and offer.plugin.built_in:
            # what a detector learned depends on the run's seed and on code besides its spec
            key = {**spec.effect.describe(), "learned": None if fitted is None else sha256(fitted.to_bytes()).hexdigest()}
        return Instrument(model, effect, key, fitted, self._bench.cache)

    def _titled(self, title: str) -> Progress | None:
        return None if self._progress is None else self._progress.titled(title)


def _own(handle: Handle) -> Floats | tuple[tuple[int, ...], ...]:
    return handle.own[None] if isinstance(handle, Vectors) else (handle.own,)


def _together(nulls: Sequence[Floats | tuple[tuple[int, ...], ...]]) -> Floats | tuple[tuple[int, ...], ...]:
    """The draws of several nulls, one after the other."""
    groups = [group for draws in nulls if isinstance(draws, tuple) for group in draws]
    return tuple(groups) if groups else np.concatenate([draws for draws in nulls if isinstance(draws, np.ndarray)])


def _rows(spec: SteerSpec, handle: Handle, which: Floats | tuple[tuple[int, ...], ...], strengths: tuple[float, ...], model: "LoadedModel") -> Rows:
    if isinstance(handle, Clamps):
        assert isinstance(which, tuple)
        return Clampings(handle.at, handle.sae, which, handle.highest, strengths)
    assert isinstance(which, np.ndarray)
    if spec.action == "project_out":
        return Projections(_writers(model) if spec.everywhere else (handle.at,), which, strengths)
    return Additions(handle.at, which, strengths, spec.unit)


def _writers(model: "LoadedModel") -> tuple[At, ...]:
    """Every hook point that writes to the residual stream."""
    places = [At("embed"), *(At(point, layer=layer) for layer in range(model.n_layers) for point in _WRITERS)]
    for at in places:
        try:
            model.hook_points.resolve(at.point, at.layer)
        except HookPointError as error:
            raise DetectorError(f"a direction can't be taken out everywhere on this model: {error}; give everywhere=False") from error
    return tuple(places)


def _where(rows: Rows) -> str:
    return str(rows.places[0]) if len(rows.places) == 1 else f"{len(rows.places)} hook points"
