"""Synthetic experiments for bundles of evidence: an addition with all that an experiment can have, one with a strength that failed, and an unfinished clamp."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mi_audit.evidence.experiments import (
    AS_IT_IS,
    DIRECT,
    DosePoint,
    ExperimentRecord,
    GenerationRecord,
    LayerPoint,
    NullBand,
    SideEffectCurve,
    SideEffectPoint,
    condition,
)
from mi_audit.evidence.records import ClaimRecord, NullRecord
from mi_audit.evidence.samples import DETECTOR, Arm
from mi_audit.stats.verdict import Verdict
from tests.unit.bundles import ALPHA, DRAWS, HOSTILE, HOSTILE_PROMPT, Builder, Content, sha

STRENGTHS = (-2.0, -1.0, 1.0, 3.0)
NEUTRAL = "neutral_text"
EFFECT = "logit_difference(negative=No, positive=Yes)"
FIRST_NULL, SECOND_NULL = "shuffled labels", "covariance-matched random"


@dataclass
class Made:
    """A simulated experiment: effects [S, n] at the strengths measured, [n] of the model as it is, and [B, S, n] along each null's draws; of side effects the
    numbers of the 12 neutral prompts as they are [12] and their changes [S, 12]."""

    record: ExperimentRecord
    strengths: tuple[float, ...]
    effects: np.ndarray
    unsteered: np.ndarray
    nulls: dict[str, np.ndarray]
    sides: dict[str, tuple[np.ndarray, np.ndarray]]


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean with bounds by the plain textbook formula: only the look of a report depends on it."""
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - 1.96 * error, mean + 1.96 * error


def steered(build: Builder, detector, suite, *, name="steers", strengths=STRENGTHS, failed=(), draws=DRAWS, hostile=False, more=None) -> Made:
    """An addition of a direction with nulls, side effects on 12 neutral prompts, what was written, and other layers."""
    measured = tuple(each for each in strengths if each not in failed)
    doses, n = np.array(measured), suite.n
    unsteered = build.random.normal(-1.0, 0.4, n)
    effects = unsteered + 1.6 * np.tanh(0.8 * doses)[:, None] + build.random.normal(0.0, 0.35, (len(doses), n))
    nulls = {
        name: unsteered + (doses[:, None] * build.random.normal(0.0, spread, (draws, 1, 1))) + build.random.normal(0.0, 0.2, (draws, len(doses), n))
        for name, spread in ((FIRST_NULL, 0.12), (SECOND_NULL, 0.2))
    }
    sides = {
        "kl": (np.zeros(12), 0.02 * doses[:, None] ** 2 * build.random.uniform(0.5, 1.5, (len(doses), 12))),
        "loss_change": (build.random.normal(3.1, 0.4, 12), 0.03 * np.abs(doses)[:, None] ** 1.5 * build.random.uniform(0.2, 1.8, (len(doses), 12))),
    }
    low, high = ALPHA, 1 - ALPHA
    drawn = {name: (values - unsteered).mean(axis=-1) for name, values in nulls.items()}
    points = []
    for strength in sorted({*strengths, *failed}):
        if strength in failed:
            reason = f"the effect of prompt 3 is not finite {HOSTILE if hostile else ''}"
            points.append(DosePoint(strength=strength, change=None, low=None, high=None, nulls=(), direct=None, failed=reason))
            continue
        place = measured.index(strength)
        change, below, above = interval(effects[place] - unsteered)
        bands = [
            NullBand(
                name=name,
                draws=draws,
                low=float(np.quantile(shifts[:, place], low)),
                median=float(np.median(shifts[:, place])),
                high=float(np.quantile(shifts[:, place], high)),
            )
            for name, shifts in drawn.items()
        ]
        points.append(DosePoint(strength=strength, change=change, low=below, high=above, nulls=tuple(bands), direct=0.15 * strength, failed=None))
    ids = [f"{suite.name.split('[')[0]}-{row:04d}" for row in range(n)]
    written = [HOSTILE_PROMPT if hostile else ids[0], ids[1]]
    fields = {
        "id": sha(f"{detector.name} {name} {suite.name}"),
        "effect": EFFECT + (HOSTILE if hostile else ""),
        "effect_digest": sha("effect"),
        "scored": None,
        "recomputable": True,
        "action": "add",
        "unit": "vector",
        "length": 7.25,
        "corpus": None,
        "hook_point": "resid_post",
        "layer": detector.layer,
        "tokens": "generated",
        "n": n,
        "groups": suite.groups,
        "origin": True,
        "unsteered": float(unsteered.mean()),
        "points": points,
        "saturation_up": 0.41,
        "saturation_down": 0.38,
        "passed": "blocks from 18 on, with keys and values of the tokens before",
        "controls": True,
        "sae": None,
        "side_effects": [_curve(f"{detector.name} {name} {suite.name}", quantity, changes, measured) for quantity, (_, changes) in sides.items()],
        "generations": [_text(build, prompt, strength, hostile) for prompt in written for strength in (measured[0], None, measured[-1])],
        "profile": [LayerPoint(layer=layer, slope=slope, low=slope - 0.05, high=slope + 0.06) for layer, slope in _slopes(detector.layer)],
        "error": None,
    } | (more or {})
    record = ExperimentRecord(detector=detector.name, detector_digest=detector.digest, suite=suite.name, suite_digest=suite.digest, **fields)
    made = Made(record, measured, effects, unsteered, nulls, sides)
    _sampled(build, made, ids)
    return made


def _curve(experiment: str, quantity: str, values: np.ndarray, strengths: tuple[float, ...]) -> SideEffectCurve:
    points = [
        SideEffectPoint(strength=strength, **dict(zip(("value", "low", "high"), interval(row), strict=True)))
        for strength, row in zip(strengths, values, strict=True)
    ]
    name = sha(f"{quantity} of {experiment}")
    return SideEffectCurve(id=name, quantity=quantity, suite=NEUTRAL, suite_digest=sha(f"suite {NEUTRAL}"), n=12, groups=12, points=points)


def _slopes(own: int) -> list[tuple[int, float]]:
    return [(layer, 0.9 - 0.004 * (layer - own) ** 2) for layer in range(0, 30, 3)]


def _text(build: Builder, prompt: str, strength: float | None, hostile: bool) -> GenerationRecord:
    text = f"Answer at {strength}.\nIt goes on for a while, and says what it would say. " + (HOSTILE if hostile else "")
    return GenerationRecord(prompt=prompt, strength=strength, text=text if build.texts_shown else None, digest=sha(text))


def _sampled(build: Builder, made: Made, ids: list[str]) -> None:
    """The rows of an experiment, and of each of its side effects."""
    named = [condition(strength) for strength in made.strengths]
    arms = [Arm(DETECTOR, made.unsteered[None], condition=AS_IT_IS)]
    arms += [Arm(DETECTOR, row[None], condition=name) for name, row in zip(named, made.effects, strict=True)]
    arms += [Arm(DIRECT, made.unsteered[None] + 0.15 * strength, condition=condition(strength)) for strength in made.strengths]
    arms += [Arm(f"null: {null}", draws[:, place], condition=name) for null, draws in made.nulls.items() for place, name in enumerate(named)]
    _added(build, made.record.id, ids, arms)
    for curve in made.record.side_effects:
        base, changes = made.sides[curve.quantity]
        sides = [Arm(DETECTOR, (base + change)[None], condition=name) for name, change in zip(named, changes, strict=True)]
        _added(build, curve.id, [f"{NEUTRAL}-{row:02d}" for row in range(12)], [Arm(DETECTOR, base[None], condition=AS_IT_IS), *sides])


def _added(build: Builder, measurement: str, ids: list[str], arms: list[Arm]) -> None:
    digests = [sha(prompt) for prompt in ids]
    build.samples.add(measurement, prompt_ids=ids, digests=digests, groups=ids, labels=None, token_index=[None] * len(ids), arms=arms)


def value_of(made: Made, quantity: str, strength: float | None, over_null: bool) -> float:
    """The claimed value from the effects themselves."""
    base = made.nulls[FIRST_NULL].mean(axis=0) if over_null else made.unsteered
    shifts = {dose: float(shift) for dose, shift in zip(made.strengths, (made.effects - base).mean(axis=-1), strict=True)}
    every = sorted({**shifts, 0.0: 0.0}.items() if made.record.origin else shifts.items())
    match quantity:
        case "slope":
            return float(np.polyfit([dose for dose, _ in every], [shift for _, shift in every], 1)[0])
        case "change":
            return shifts[strength]
        case "smallest_step":
            return min(after - before for (_, before), (_, after) in pairwise(every))
        case "sign_reversal":
            return min(shifts[made.strengths[-1]], -shifts[made.strengths[0]])
        case _:
            return float(made.sides[quantity][1][made.strengths.index(strength)].mean())


def bounds_of(made: Made, quantity: str, strength: float | None, over_null: bool) -> tuple[float, float, float]:
    """The claimed value with its interval: that of the record, where the record has it."""
    curves = [curve for curve in made.record.side_effects if curve.quantity == quantity]
    for point in curves[0].points if curves else ():
        if point.strength == strength:
            return point.value, point.low, point.high
    for point in made.record.points if quantity == "change" and not over_null else ():
        if point.strength == strength:
            return point.change, point.low, point.high
    value = value_of(made, quantity, strength, over_null)
    return value, value - 0.08, value + 0.08


def claim(
    build: Builder, audit: str, about: str, index: int, made: Made, quantity: str, op: str, threshold: float, strength=None, over_null=False
) -> ClaimRecord:
    """A claim on an experiment, with its nulls where it says that there is an effect."""
    record, side = made.record, quantity in made.sides
    value, low, high = bounds_of(made, quantity, strength, over_null)
    observed, downward = value_of(made, quantity, strength, False), op in ("<=", "<")
    holds, fails = (high <= threshold, low > threshold) if downward else (low >= threshold, high < threshold)
    spread = -0.3 if downward else 0.3
    made_of = [
        NullRecord(name=name, draws=DRAWS, k=0, p=1 / (DRAWS + 1), passed=True, median=0.01, high=spread, observed=observed, decides=decides, downward=downward)
        for name, decides in ((FIRST_NULL, True), (SECOND_NULL, True))
    ]
    at = "" if strength is None else f".at({strength:g})"
    claim = ClaimRecord(
        id=f"{audit}#{index}",
        audit=audit,
        index=index,
        line=40 + 3 * index,
        about=about,
        reading=record.id,
        detector=record.detector,
        detector_digest=record.detector_digest,
        suite=record.suite,
        suite_digest=record.suite_digest,
        quantity=quantity,
        pairs=None,
        strength=strength,
        over_null=over_null,
        on=NEUTRAL if side else None,
        effect=None if side else record.effect,
        op=op,
        threshold=threshold,
        text=f"{record.detector} on {record.suite}{at}: {quantity}() {op} {threshold:g}",
        verdict=Verdict.PASS if holds else Verdict.FAIL if fails else Verdict.INCONCLUSIVE,
        reasons=() if holds or fails else ("the interval is on both sides",),
        value=value,
        low=low,
        high=high,
        alpha=ALPHA,
        n=12 if side else record.n,
        n_positive=None,
        groups=12 if side else record.groups,
        method="t on group means",
        needed_n=None,
        needed_groups=None,
        nulls=() if side else made_of,
        baselines=(),
        selectivity=None,
        worst=(f"{NEUTRAL}-03",) if side else (f"{record.suite.split('[')[0]}-0002",),
    )
    build.claims.append(claim)
    return claim


def audit_of(build: Builder, audit: str, title: str, about: str, parts: list[tuple], **more) -> None:
    """An audit with one claim for each of `parts` (arguments of `claim`)."""
    made = [claim(build, audit, about, index, *part) for index, part in enumerate(parts)]
    build.audit(audit, title, "Pushed along it, the model says yes.", about, [], verdict=Verdict.worst([each.verdict for each in made]), **more)
    build.audits[-1] = build.audits[-1].model_copy(update={"claims": tuple(each.id for each in made)})


def experiments(*, texts_shown: bool = True, hostile: bool = False) -> tuple[Builder, list[Made], Content]:
    """A run with three experiments: one with claims of every quantity, one with a strength that failed and claims at others, a clamp that was broken off."""
    build = Builder(texts_shown=texts_shown)
    fit, test = build.suite("pairs[train]", 120, 30, 60, matched=True), build.suite("pairs[test]", 200, 50, 100, matched=True)
    live, benign = build.suite("questions", 60, 20, None), build.suite("benign_chat[test]", 500, 250, None)
    build.suite(NEUTRAL, 12, 12, None)
    probe = build.probe("dishonesty", "difference_of_means", "resid_post", 18, fit, 1.0)
    reads, quiet = build.read(probe, test, 4.0, -0.6), build.read(probe, benign, 0.0, -3.5, controls=False)
    telling = [{"read": reads, "quantity": "auroc", "op": ">=", "threshold": 0.85}, {"read": quiet, "quantity": "rate", "op": "<=", "threshold": 0.05}]
    build.audit("a.py::audit_reads", "It reads", "", "instrument", telling)
    first = steered(build, probe, live, hostile=hostile)
    second = steered(build, probe, live, name="steers too far", failed=(4.0,), hostile=hostile)
    clamp = {
        "effect": "function(shown=politeness)",
        "recomputable": False,
        "action": "clamp",
        "unit": "max",
        "length": 31.5,
        "corpus": "latent_corpus",
        "tokens": "all",
        "origin": False,
        "saturation_up": None,
        "saturation_down": None,
        "side_effects": (),
        "generations": (),
        "profile": (),
        "error": f"EngineError: out of memory while the nulls were passed {HOSTILE if hostile else ''}",
    }
    third = steered(build, probe, live, name="clamps", strengths=(0.0, 1.0), more=clamp)
    parts = [
        (first, "slope", ">", 0.0, None, True),
        (first, "slope", ">=", 0.5),
        (first, "smallest_step", ">", 0.0, None, True),
        (first, "sign_reversal", ">", 0.0),
        (first, "change", "<=", -0.5, -2.0),
        (first, "change", ">", 0.0, 3.0, True),
        (first, "kl", "<=", 0.05, 1.0),
        (first, "loss_change", "<=", 0.06, 1.0),
    ]
    audit_of(build, "b.py::audit_handle", "The direction is a handle", "instrument", parts)
    audit_of(build, "b.py::audit_goes_far", "Far along it too", "model", [(second, "change", ">=", 0.2, 1.0), (second, "kl", "<=", 0.6, 3.0)], severity="high")
    return build, [first, second, third], build.content(experiments=(first.record, second.record, third.record))
