"""From experiments to their records and their rows in the evidence."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mi_audit.evidence import experiments as e
from mi_audit.evidence.experiments import AS_IT_IS, DIRECT, condition
from mi_audit.evidence.samples import DETECTOR, Arm, SampleTable
from mi_audit.plan.digest import digest_of
from mi_audit.plan.steering import SteerSpec
from mi_audit.recording_saes import sae_record
from mi_audit.scrubbing import scrubbed
from mi_audit.suites.suite import Suite

if TYPE_CHECKING:
    from mi_audit.causal.data import ExperimentData
    from mi_audit.causal.laboratory import Laboratory
    from mi_audit.detectors.bench import Bench
    from mi_audit.stats.checks import Floats
    from mi_audit.stats.estimate import Estimate


def experiment_record(spec: SteerSpec, bench: "Bench", lab: "Laboratory", *, alpha: float, texts_shown: bool) -> e.ExperimentRecord:
    """What was measured of an experiment so far."""
    made = lab.begun[spec]
    handle, suite = made.handle, made.suite
    everywhere = spec.action == "project_out" and spec.everywhere
    saturation = made.dose.saturation()
    return e.ExperimentRecord(
        id=spec.digest,
        detector=spec.detector.name,
        detector_digest=spec.detector.digest,
        suite=suite.name,
        suite_digest=suite.digest,
        effect=str(spec.effect),
        effect_digest=spec.effect.digest,
        scored=None if spec.effect.detector is None else spec.effect.detector.name,
        recomputable=spec.effect.recomputable,
        action=spec.action,
        unit=spec.unit,
        length=None if spec.unit == "norm" or spec.action == "project_out" else handle.length,
        corpus=lab.corpus(spec),
        hook_point="everywhere" if everywhere else handle.at.point,
        layer=None if everywhere else handle.at.layer,
        tokens=str(spec.tokens),
        n=len(suite),
        groups=len(set(suite.groups())),
        origin=spec.origin,
        unsteered=float(made.unsteered.mean()),
        points=tuple(_points(made, lab, alpha)),
        saturation_up=saturation.positive,
        saturation_down=saturation.negative,
        passed=made.passed,
        controls=spec.controls,
        sae=sae_record(spec, bench),
        side_effects=tuple(_curves(spec, lab)),
        generations=tuple(
            e.GenerationRecord(
                prompt=each.prompt,
                strength=each.strength,
                text=each.text if texts_shown else None,
                digest=hashlib.sha256(each.text.encode()).hexdigest(),
            )
            for each in made.written
        ),
        profile=tuple(_layers(made, alpha)),
        error=scrubbed(made.error) if made.error else None,
    )


def add_experiment(spec: SteerSpec, lab: "Laboratory", table: SampleTable) -> None:
    """The rows of an experiment: the effect on each prompt, as it is and at each strength, along the detector and along each draw of its nulls."""
    made = lab.begun[spec]
    arms = [Arm(DETECTOR, made.unsteered[None], condition=AS_IT_IS)]
    for row, strength in enumerate(made.strengths):
        arms.append(Arm(DETECTOR, made.values[row][None], condition=condition(strength)))
        arms += [Arm(f"null: {name}", draws[:, row], condition=condition(strength)) for name, draws in made.nulls.items()]
        if made.direct is not None:
            arms.append(Arm(DIRECT, made.direct[row][None], condition=condition(strength)))
    _add(table, spec.digest, made.suite, arms)


def side_effect_suites(spec: SteerSpec, lab: "Laboratory") -> Iterator[tuple[str, Suite]]:
    """The measurement of each side effect that was measured, and the suite."""
    return ((_curve_id(spec, quantity, suite), suite) for quantity, suite, _, _ in lab.side_values(spec))


def add_side_effect(spec: SteerSpec, lab: "Laboratory", measurement: str, table: SampleTable) -> None:
    """The rows of a side effect: of the model as it is, and at each strength the number that it is then (of a divergence, which has none, the divergence)."""
    strengths = lab.begun[spec].strengths
    for quantity, suite, base, changes in lab.side_values(spec):
        if _curve_id(spec, quantity, suite) == measurement:
            arms = [Arm(DETECTOR, base[None], condition=AS_IT_IS)]
            arms += [Arm(DETECTOR, (base + changes[row])[None], condition=condition(strength)) for row, strength in enumerate(strengths)]
            _add(table, measurement, suite, arms)


def _curve_id(spec: SteerSpec, quantity: str, suite: Suite) -> str:
    return digest_of({"experiment": spec.digest, "quantity": quantity, "suite": suite.digest})


def _add(table: SampleTable, measurement: str, suite: Suite, arms: Sequence[Arm]) -> None:
    table.add(
        measurement,
        prompt_ids=suite.ids(),
        digests=[prompt.digest for prompt in suite],
        groups=suite.groups(),
        labels=suite.labels() if suite.has_labels else None,
        token_index=[None] * len(suite),
        arms=arms,
    )


def _points(made: "ExperimentData", lab: "Laboratory", alpha: float) -> Iterator[e.DosePoint]:
    for strength in sorted([*made.strengths, *made.failed]):
        if strength in made.failed:
            yield e.DosePoint(strength=strength, change=None, low=None, high=None, nulls=(), direct=None, failed=scrubbed(made.failed[strength]))
            continue
        row, estimate = made.strengths.index(strength), made.dose.estimate("change", strength, alpha=alpha)
        yield e.DosePoint(
            strength=strength,
            change=estimate.value,
            low=estimate.low,
            high=estimate.high,
            nulls=tuple(_band(name, (draws[:, row] - made.unsteered).mean(axis=1), alpha) for name, draws in made.nulls.items()),
            direct=None if made.direct is None else float((made.direct[row] - made.unsteered).mean()),
            failed=None,
        )


def _band(name: str, changes: "Floats", alpha: float) -> e.NullBand:
    low, median, high = np.quantile(changes, [alpha, 0.5, 1 - alpha]).tolist()
    return e.NullBand(name=name, draws=len(changes), low=low, median=median, high=high)


def _curves(spec: SteerSpec, lab: "Laboratory") -> Iterator[e.SideEffectCurve]:
    for quantity, suite, estimates in lab.side_effects(spec):
        yield e.SideEffectCurve(
            id=_curve_id(spec, quantity, suite),
            quantity=quantity,
            suite=suite.name,
            suite_digest=suite.digest,
            n=len(suite),
            groups=len(set(suite.groups())),
            points=tuple(_side_point(strength, estimate) for strength, estimate in estimates.items()),
        )


def _side_point(strength: float, estimate: "Estimate") -> e.SideEffectPoint:
    return e.SideEffectPoint(strength=strength, value=estimate.value, low=estimate.low, high=estimate.high)


def _layers(made: "ExperimentData", alpha: float) -> Iterator[e.LayerPoint]:
    for layer in made.profile:
        assert layer.at.layer is not None
        estimate = made.dose_of(layer.values).estimate("slope", alpha=alpha)
        yield e.LayerPoint(layer=layer.at.layer, slope=estimate.value, low=estimate.low, high=estimate.high)
