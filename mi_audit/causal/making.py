"""An experiment, made: first along the detector, then along directions with nothing to find."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import numpy as np

from mi_audit.causal.arms import Instrument, Measured, written
from mi_audit.causal.data import ExperimentData, Layer, Written
from mi_audit.causal.effect import OfDetector
from mi_audit.causal.handles import Clamps, Handle, Latents, Vectors, clamps_of, vectors_of
from mi_audit.causal.held import effect_of
from mi_audit.causal.highest import corpus_of, highest_values
from mi_audit.causal.rows import Additions, Clampings, Projections, Rows
from mi_audit.causal.side_effects import Beside
from mi_audit.causal.tasks import asked, tokenizer_of
from mi_audit.detectors.bench import Bench
from mi_audit.detectors.controls import stream
from mi_audit.detectors.latents import LearnedLatents
from mi_audit.engine.progress import Progress
from mi_audit.engine.site import Site
from mi_audit.engine.variants import how_passed
from mi_audit.errors import DetectorError, HookPointError, MiAuditError, NotFiniteError
from mi_audit.plan.digest import Json
from mi_audit.plan.places import At, Tokens
from mi_audit.plan.steering import SideQuantity, SteerSpec
from mi_audit.plugins import active
from mi_audit.stats.checks import Floats
from mi_audit.suites.suite import Suite

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

SHOWN: Final = 3
"""Prompts after which the model writes, for the report."""
WRITTEN: Final = 32
"""Tokens that it writes."""

_WRITERS: Final = ("attn_out", "mlp_out")


@dataclass(frozen=True, eq=False)
class Maker:
    """Makes experiments on a loaded model with what detectors learned at the bench."""

    bench: Bench
    model: "LoadedModel"
    alpha: float
    seed: int
    progress: Progress | None
    kept: dict[str, Measured] = field(default_factory=dict)
    """What was measured in passes of one experiment for another."""

    def make(self, spec: SteerSpec, suite: Suite, begun: Callable[[ExperimentData], None], beside: Iterable[SteerSpec] = ()) -> None:
        """Make an experiment on a suite's prompts; `begun` is told what there is of it, also where it is broken off, by Ctrl-C too. `beside` are others that
        differ in the effect alone, to be made later: what can be is measured for them too.

        Raises:
            DetectorError: no strength could be measured, a draw of a null is not finite, or the handle does not fit.
            HookPointError, PromptError: as the passes.
        """
        handle = self._handle(spec, suite)
        instrument, title = replace(self._instrument(spec), beside=tuple(self._others(beside))), f"{spec.detector.name} on {suite.name}"
        if instrument.fitted is not None and instrument.fitted.at == handle.at:
            raise DetectorError(
                f"{spec}: the score is read at {handle.at}, where the model is changed, so that it moves whatever the model does; read a later layer"
            )
        made = self._along(spec, suite, handle, instrument, title, begun)
        begun(made)
        try:
            begun(self._beside(made, instrument, title))
        except BaseException as error:
            begun(replace(made, error=_told(error)))
            raise

    def beside(self, made: ExperimentData, quantity: SideQuantity, neutral: Suite) -> tuple[Floats, Floats]:
        """A side effect on a suite's prompts: of the model as it is [n], and its changes [S, n]. Raises as `make`."""
        title, rows = self._titled(f"{quantity} of {made.spec.detector.name} on {neutral.name}"), self._rows(made)
        try:
            return Beside(self.model, neutral.prompts, rows, made.spec.tokens, made.handle.at, self.bench.cache, title).measure(quantity)
        except NotFiniteError as error:
            if error.variant is None:
                raise
            raise DetectorError(f"{quantity} on {neutral.name} at the strength {made.strengths[error.variant]:g}, {_where(rows)}: {error}") from error

    def _along(
        self, spec: SteerSpec, suite: Suite, handle: Handle, instrument: Instrument, title: str, begun: Callable[[ExperimentData], None]
    ) -> ExperimentData:
        prompts = asked(self.model, suite.prompts, spec.tokens, handle.at, self.bench.cache)
        strengths, failed = list(spec.strengths), dict[float, str]()
        while strengths:
            rows, none = _rows(spec, handle, _own(handle), tuple(strengths), self.model), np.empty(0)
            passed = how_passed(self.model, rows.places[0])
            blank = ExperimentData(spec, suite, handle, rows.strengths, none, none, {}, None, failed, passed, asked=prompts)
            broken = partial(_broken_off, blank, begun)
            try:
                return _filled(blank, instrument.measure(prompts, rows, self._titled(f"steering {title}"), broken))
            except NotFiniteError as error:
                if error.variant is None:  # of the model as it is
                    raise
                strength = strengths.pop(error.variant)
                failed[strength] = f"at the strength {strength:g}, {_where(rows)}: {error}; take smaller strengths"
        raise DetectorError(f"{spec}: {next(iter(failed.values()))}")

    def _beside(self, made: ExperimentData, instrument: Instrument, title: str) -> ExperimentData:
        """With its nulls, what goes straight to the unembedding, texts for the report and other layers."""
        nulls = self._along_nulls(made, instrument, title)
        direct = self._direct(made, instrument)
        return replace(made, nulls=nulls, direct=direct, written=self._written(made), profile=self._profile(made, instrument))

    def _along_nulls(self, made: ExperimentData, instrument: Instrument, title: str) -> dict[str, Floats]:
        """The draws of all nulls, which share the passes of the prompts as they are."""
        strengths = made.strengths
        nulls: dict[str, Floats | tuple[Latents, ...]] = {**made.handle.nulls}
        if not nulls:
            return {}
        rows = _rows(made.spec, made.handle, _together(list(nulls.values())), strengths, self.model)
        names = [(name, draw) for name, draws in nulls.items() for draw in range(len(draws))]
        try:
            found = instrument.measure(made.asked, rows, self._titled(f"nulls of {title}")).values
        except NotFiniteError as error:
            number, strength = divmod(error.variant or 0, len(strengths))
            name, draw = names[number]
            raise DetectorError(f"{name}, draw {draw}, at the strength {strengths[strength]:g}, {_where(rows)}: {error}") from error
        return {name: found[[which == name for which, _ in names]] for name in nulls}

    def _direct(self, made: ExperimentData, instrument: Instrument) -> Floats | None:
        """The effect where the vector is added behind the last block."""
        spec, last = made.spec, At("resid_post", layer=self.model.n_layers - 1)
        vectors = isinstance(made.handle, Vectors) and spec.action == "add" and spec.unit != "norm"
        if not vectors or isinstance(instrument.effect, OfDetector) or len(made.handle.own) != self.model.d_model or made.handle.at == last:
            return None
        assert isinstance(made.handle, Vectors)
        rows = Additions(last, made.handle.own[None], made.strengths, spec.unit)
        found: Floats = instrument.measure(made.asked, rows).values[0]
        return found

    def _written(self, made: ExperimentData) -> tuple[Written, ...]:
        chosen = stream(self.seed, "written", made.spec.digest).choice(len(made.asked), min(SHOWN, len(made.asked)), replace=False)
        few, rows = [made.asked[number] for number in sorted(chosen.tolist())], self._rows(made)
        texts = written(self.model, few, rows, WRITTEN)
        strengths: list[float | None] = [*made.strengths, None]
        return tuple(
            Written(each.prompt.id, strength, texts[row][column])
            for column, each in enumerate(few)
            for row, strength in enumerate(strengths)
            if strength is None or row in (0, len(made.strengths) - 1)
        )

    def _profile(self, made: ExperimentData, instrument: Instrument) -> tuple[Layer, ...]:
        layers = []
        for depth in made.spec.profile:
            at = At(made.handle.at.point, depth=depth).in_model(self.model.n_layers)
            again = replace(made.spec, detector=made.spec.detector.moved_to(at), controls=False)
            handle = self._handle(again, made.suite)
            taken = asked(self.model, made.suite.prompts, made.spec.tokens, at, self.bench.cache)
            rows = _rows(again, handle, _own(handle), made.strengths, self.model)
            layers.append(Layer(at, instrument.measure(taken, rows, self._titled(f"layer {at.layer}, {made.spec.detector.name}")).values[0]))
        return tuple(layers)

    def _handle(self, spec: SteerSpec, suite: Suite) -> Handle:
        learned = self.bench.learned(spec.detector)
        if isinstance(learned, LearnedLatents):
            corpus = corpus_of(learned.spec)
            return clamps_of(spec, learned, highest_values(self.model, learned, corpus, self.bench.cache), self.alpha)
        acts = None
        if spec.controls and spec.detector.fit is None:
            acts = self.bench.vectors(suite, Site(learned.detector.at, Tokens("last")))
        return vectors_of(spec, learned, acts, self.alpha, self.seed)

    def _rows(self, made: ExperimentData) -> Rows:
        return _rows(made.spec, made.handle, _own(made.handle), made.strengths, self.model)

    def _instrument(self, spec: SteerSpec) -> Instrument:
        offer = active().effects[spec.effect.name]
        effect = effect_of(offer, spec.effect, tokenizer_of(self.model))
        fitted = self.bench.learned(spec.effect.detector).detector if spec.effect.detector is not None else None
        key: dict[str, Json] | None = None
        if spec.effect.function is None and offer.plugin.built_in:
            # what a detector learned depends on the run's seed and on code besides its spec
            key = {**spec.effect.describe(), "learned": None if fitted is None else sha256(fitted.to_bytes()).hexdigest()}
        return Instrument(self.model, effect, key, fitted, self.bench.cache, kept=self.kept)

    def _others(self, specs: Iterable[SteerSpec]) -> Iterator[Instrument]:
        for spec in specs:
            if spec.effect.detector is None:
                with suppress(MiAuditError):  # raised again when it is made
                    yield self._instrument(spec)

    def _titled(self, title: str) -> Progress | None:
        return None if self.progress is None else self.progress.titled(title)


def _own(handle: Handle) -> Floats | tuple[Latents, ...]:
    return handle.own[None] if isinstance(handle, Vectors) else (handle.own,)


def _together(nulls: Sequence[Floats | tuple[Latents, ...]]) -> Floats | tuple[Latents, ...]:
    """The draws of several nulls, one after the other."""
    groups = [group for draws in nulls if isinstance(draws, tuple) for group in draws]
    return tuple(groups) if groups else np.concatenate([draws for draws in nulls if isinstance(draws, np.ndarray)])


def _rows(spec: SteerSpec, handle: Handle, which: Floats | tuple[Latents, ...], strengths: tuple[float, ...], model: "LoadedModel") -> Rows:
    if isinstance(handle, Clamps):
        assert isinstance(which, tuple)
        return Clampings(handle.at, handle.sae, which, handle.highest, strengths)
    assert isinstance(which, np.ndarray)
    if spec.action == "project_out":
        return Projections(_writers(model) if spec.everywhere else (handle.at,), which, strengths)
    return Additions(handle.at, which, strengths, spec.unit)


def _writers(model: "LoadedModel") -> tuple[At, ...]:
    """Every hook point that writes to the residual stream; before the first block it holds all that embeddings, of positions too, put there."""
    places = [At("resid_pre", layer=0), *(At(point, layer=layer) for layer in range(model.n_layers) for point in _WRITERS)]
    for at in places:
        try:
            model.hook_points.resolve(at.point, at.layer)
        except HookPointError as error:
            raise DetectorError(f"a direction can't be taken out everywhere on this model: {error}; give everywhere=False") from error
    return tuple(places)


def _filled(blank: ExperimentData, found: Measured) -> ExperimentData:
    """With the effect on those of its prompts, its first, that were measured."""
    return replace(blank, suite=blank.suite.first(len(found.unsteered)), unsteered=found.unsteered, values=found.values[0])


def _broken_off(blank: ExperimentData, begun: Callable[[ExperimentData], None], found: Measured, error: BaseException) -> None:
    begun(replace(_filled(blank, found), error=_told(error)))


def _told(error: BaseException) -> str:
    return "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__


def _where(rows: Rows) -> str:
    return str(rows.places[0]) if len(rows.places) == 1 else f"{len(rows.places)} hook points"
