"""From a process that judges to the parts of the evidence. This is where measuring and evidence meet; neither knows of the other."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mi_audit.errors import EvidenceError, StatisticsError
from mi_audit.evidence import records as r
from mi_audit.evidence import store
from mi_audit.evidence.experiments import ExperimentRecord
from mi_audit.evidence.parts import AuditOutline, Outline, Part, PartRecord
from mi_audit.evidence.samples import Arm, SampleTable
from mi_audit.evidence.tokens import TokenTable
from mi_audit.judging.results import AuditResult, DecidedClaim
from mi_audit.plan.detectors import DetectorSpec
from mi_audit.plan.leaks import one_source
from mi_audit.plan.measurements import AttributionSpec, EstimateSpec, ReadSpec
from mi_audit.plan.plan import Plan, PlannedAudit
from mi_audit.plan.printing import lines_of
from mi_audit.plan.steering import DoseSpec, SteerSpec
from mi_audit.plugins import Registry, active
from mi_audit.recording_experiments import add_experiment, add_side_effect, experiment_record, side_effect_suites
from mi_audit.recording_saes import sae_record
from mi_audit.scrubbing import scrubbed
from mi_audit.suites.suite import Suite
from mi_audit.token_table import add_token_scores
from mi_audit.worst import worst_prompts

if TYPE_CHECKING:
    from mi_audit.causal.laboratory import Laboratory
    from mi_audit.detectors.bench import Bench
    from mi_audit.detectors.sweeping import Curve
    from mi_audit.model.audited import AuditedModel
    from mi_audit.session import Session


def outline_of(run: "Session", plan: Plan, nodes: Sequence[str], partial: Sequence[str], broken: Sequence[str]) -> Outline:
    """The plan as far as the evidence needs it.

    Args:
        run: this process's share of the run.
        plan: what was planned.
        nodes: pytest's names of its audits.
        partial: the reasons for which the run can't gate.
        broken: audit files, or folders of such, that could not be collected.

    Raises:
        EvidenceError: a text of it can't be evidence.
        PluginError: a plugin can't be digested.
    """
    with _fit_for_evidence("the plan"):
        return _outline_of(run, plan, nodes, partial, broken)


def _outline_of(run: "Session", plan: Plan, nodes: Sequence[str], partial: Sequence[str], broken: Sequence[str]) -> Outline:
    return Outline(
        plan=r.PlanRecord(digest=plan.digest, alpha=plan.alpha, seed=plan.seed, limit=plan.limit, audits=len(plan.audits), claims=sum(1 for _ in plan.claims)),
        audits=tuple(_outline(audit, node) for audit, node in zip(plan.audits, nodes, strict=True)),
        partial=tuple(partial),
        broken=tuple(broken),
        plugins=tuple(_plugins(active())),
        texts_shown=run.settings.texts == "shown",
        lines=tuple(lines_of(plan)),
    )


class Recorder:
    """Makes a part of each result, in one process; what was measured goes into the first part that rests on it."""

    def __init__(self, run: "Session", plan: Plan) -> None:
        self._run = run
        self._pairs = {spec.estimate.reading: spec.estimate.pairs for _, spec in plan.claims if spec.estimate.pairs}
        self._attributions = {spec.reading: spec for audit in plan.audits if not audit.faults for spec in audit.attributions}
        self._readings: set[tuple[ReadSpec, str | None]] = set()
        self._detectors: set[DetectorSpec] = set()
        self._sampled: set[str] = set()
        self._seconds_told: dict[str, float] = {}
        self._cache_told: dict[str, int] = {}

    def part(self, place: int, result: AuditResult) -> Part:
        """The part of the audit at this place of the plan.

        Raises:
            EvidenceError: a number or a text of it can't be evidence.
        """
        with _fit_for_evidence(result.audit.id):
            part = self._part(place, result)
        model = self._run.model
        if model is not None and model.failure is not None:  # it came up after audits were judged by what an earlier run found
            raise EvidenceError(f"what audits were judged by can't be relied on: {model.failure}")
        return part

    def _part(self, place: int, result: AuditResult) -> Part:
        model, bench, lab = self._run.model, self._run.bench, self._run.lab
        samples, tokens = SampleTable(), TokenTable(texts_shown=self._run.settings.texts == "shown")
        files: dict[str, bytes] = {}
        suites: dict[str, Suite] = {}
        detectors: list[r.DetectorRecord] = []
        readings: list[r.ReadingRecord] = []
        experiments: list[ExperimentRecord] = []
        claims: list[r.ClaimRecord] = []
        if model is not None and bench is not None and lab is not None:
            new = self._new_readings(result)
            begun = [spec for spec in _experiments_of(result) if spec in lab.begun]
            used = [*(reading.detector for reading in new), *(spec.detector for spec in begun)]
            for spec in dict.fromkeys(detector for detector in used if detector not in self._detectors):
                self._detectors.add(spec)
                curve = bench.curve(spec)
                detectors.append(_detector(spec, bench, curve, files))
                suites.update((suite.digest, suite) for suite in (*spec.suites, *([curve.validation] if curve else [])))
            missing = add_token_scores(model, bench, tuple(new), self._attributions, tokens, self._run.seconds)
            for reading, pairs in new.items():
                attribution = None if reading in missing else self._attributions.get(reading)
                readings.append(_reading(reading, bench, samples, suites, pairs, missing.get(reading), attribution))
            for experiment in begun:
                try:
                    measured = experiment_record(experiment, bench, lab, alpha=self._run.settings.alpha, texts_shown=self._run.settings.texts == "shown")
                except StatisticsError:  # a limit left one group of its prompts: no change of it has an interval, as the errors of its audits say
                    continue
                experiments.append(measured)
                suite = lab.begun[experiment].suite
                suites.setdefault(suite.digest, suite)
                if experiment.digest not in self._sampled:
                    self._sampled.add(experiment.digest)
                    add_experiment(experiment, lab, samples)
                for measurement, neutral in side_effect_suites(experiment, lab):
                    suites.setdefault(neutral.digest, neutral)
                    if measurement not in self._sampled:
                        self._sampled.add(measurement)
                        add_side_effect(experiment, lab, measurement, samples)
            claims = [_claim(result, index, decided, bench, lab) for index, decided in enumerate(result.claims)]
        record = PartRecord(
            place=place,
            audit=_audit(result),
            claims=tuple(claims),
            model=_model(model) if model is not None else None,
            suites=tuple(_suite(suite) for suite in suites.values()),
            detectors=tuple(detectors),
            readings=tuple(readings),
            experiments=tuple(experiments),
            sampled=tuple(samples.readings),
            seconds=self._seconds(),
            cache=self._cache(),
            cache_trouble=scrubbed(bench.cache.trouble) if bench is not None and bench.cache is not None and bench.cache.trouble else None,
        )
        return Part(record, samples, tokens, files)

    def _new_readings(self, result: AuditResult) -> dict[ReadSpec, str | None]:
        """The readings of a result that are in no part yet, each with the field that pairs its prompts: as the plan says, else as an unplanned audit does."""
        estimates = _estimates_used(result)
        pairs = {spec.reading: spec.pairs for spec in estimates if spec.pairs} | self._pairs
        new = {spec.reading: pairs.get(spec.reading) for spec in estimates if (spec.reading, pairs.get(spec.reading)) not in self._readings}
        self._readings.update(new.items())
        return new

    def _seconds(self) -> dict[str, float]:
        """Seconds per phase since the part before."""
        before, self._seconds_told = self._seconds_told, dict(self._run.seconds)
        return {phase: seconds - before.get(phase, 0.0) for phase, seconds in self._seconds_told.items()}

    def _cache(self) -> dict[str, int]:
        """Prompts that passed through the model, and that were found in the cache, since the part before; whether its weights were loaded since then; and
        whether what is said of its checks was found by an earlier run."""
        model, bench = self._run.model, self._run.bench
        if model is None or bench is None:
            return {}
        told = {
            "prompts passed": bench.captured.prompts,
            "prompts found": bench.captured.cached,
            "weights loaded": int(model.has_weights),
            "checks recalled": int(model.recalled),
        }
        before, self._cache_told = self._cache_told, told
        return {kind: count - before.get(kind, 0) for kind, count in self._cache_told.items()}


@contextmanager
def _fit_for_evidence(what: str) -> Iterator[None]:
    """Records refuse what evidence can't hold; say of what it was."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        raise EvidenceError(f"{what} can't be evidence: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _estimates_used(result: AuditResult) -> list[EstimateSpec]:
    specs = (decided.claim.estimate.spec for decided in result.claims)
    return list(dict.fromkeys(spec for spec in specs if isinstance(spec, EstimateSpec)))


def _experiments_of(result: AuditResult) -> list[SteerSpec]:
    """The experiments that an audit rests on, also those that kept it from being decided."""
    planned = (claim.spec.estimate for claim in result.audit.claims)
    heard = (decided.planned.spec.estimate for decided in result.claims)
    return list(dict.fromkeys(spec.reading for spec in (*planned, *heard) if isinstance(spec, DoseSpec)))


def _model(model: "AuditedModel") -> r.ModelRecord:
    identity, check = model.identity, model.self_check
    return r.ModelRecord(
        ref=identity.ref if identity.source in ("shipped", "hub") else Path(identity.ref).name or Path(identity.ref).resolve().name or "model",
        root=identity.root,
        architecture=identity.architecture,
        parameters=identity.parameters,
        n_layers=identity.n_layers,
        d_model=identity.d_model,
        source=identity.source,
        revision=identity.revision,
        files=tuple(r.FileRecord(name=file.name, sha256=file.sha256, bytes=file.size) for file in identity.files),
        tokenizer_digest=identity.tokenizer_digest,
        chat_template_digest=identity.chat_template_digest,
        dtype=identity.dtype,
        device=identity.device,
        attention=identity.attention,
        batching=str(model.packing),
        versions=dict(identity.versions),
        licence=identity.licence,
        self_check=tuple(
            r.CheckRecord(name=item.name, passed=item.passed, worst=item.worst, tolerance=item.tolerance, detail=item.detail) for item in check.items
        ),
        refused=tuple(r.RefusedRecord(hook_point=name, layer=layer, reason=reason) for name, layer, reason in check.refused),
    )


def _plugins(registry: Registry) -> Iterator[r.PluginRecord]:
    for plugin in registry.third_party:
        yield r.PluginRecord(name=plugin.name, distribution=plugin.distribution, version=plugin.version, digest=plugin.digest, kinds=registry.kinds(plugin))


def _suite(suite: Suite) -> r.SuiteRecord:
    positives = sum(suite.labels()) if suite.has_labels else None
    return r.SuiteRecord(
        name=suite.name,
        digest=suite.digest,
        source=suite.source,
        n=len(suite),
        groups=len(set(suite.groups())),
        positives=positives,
        negatives=None if positives is None else len(suite) - positives,
        origin=suite.root.digest,
        matched=suite.root.is_matched,
    )


def _detector(spec: DetectorSpec, bench: "Bench", curve: "Curve | None", files: dict[str, bytes]) -> r.DetectorRecord:
    fitted = bench.detector(spec)
    content = fitted.to_bytes()
    name = f"{store.DETECTORS}/{spec.name}-{spec.digest[:8]}.safetensors"  # detectors of unplanned audits may share a name
    files[name] = content
    return r.DetectorRecord(
        name=spec.name,
        digest=spec.digest,
        kind=spec.kind,
        method=spec.method,
        hook_point=fitted.at.point,
        layer=fitted.at.layer,
        tokens=str(spec.tokens),
        fit_suite=spec.fit.name if spec.fit else None,
        fit_n=len(spec.fit) if spec.fit else None,
        fit_groups=len(set(spec.fit.groups())) if spec.fit else None,
        seen=tuple(dict.fromkeys(suite.digest for suite in (*spec.suites, *([curve.validation] if curve else [])))),
        validation_suite=curve.validation.name if curve else None,
        curve=tuple(_points(curve)) if curve else (),
        regularisation=regularisation if isinstance(regularisation := fitted.card.get("regularisation"), float) else None,
        threshold=fitted.threshold,
        threshold_rule=str(spec.threshold) if spec.threshold else None,
        file=name,
        file_digest=hashlib.sha256(content).hexdigest(),
    )


def _points(curve: "Curve") -> Iterator[r.CurvePoint]:
    n, groups = len(curve.validation), len(set(curve.validation.groups()))
    for point in curve.points:
        found = point.auroc
        assert point.at.layer is not None
        yield r.CurvePoint(
            layer=point.at.layer,
            auroc=None if found is None else found.value,
            low=None if found is None else found.low,
            high=None if found is None else found.high,
            n=n,
            groups=groups,
            picked=point.at == curve.picked,
            caveats=(point.unfit or "",) if found is None else found.undecided,
        )


def _reading(
    spec: ReadSpec,
    bench: "Bench",
    samples: SampleTable,
    suites: dict[str, Suite],
    pairs: str | None,
    tokens_error: str | None,
    attribution: AttributionSpec | None,
) -> r.ReadingRecord:
    data, spread = bench.read(spec), bench.spread(spec)
    suites[data.suite.digest] = data.suite
    samples.add(
        spec.digest,
        prompt_ids=data.ids,
        digests=data.digests,
        groups=data.suite.groups(),
        labels=data.labels,
        token_index=data.token_index,
        pairs=None if pairs is None else data.pairs(pairs).tolist(),
        arms=[Arm(arm.name, arm.values, arm.thresholds, labels=arm.labels) for arm in data.arms],
    )
    return r.ReadingRecord(
        id=spec.digest,
        detector=spec.detector.name,
        detector_digest=spec.detector.digest,
        suite=data.suite.name,
        suite_digest=data.suite.digest,
        n=len(data.suite),
        groups=len(set(data.suite.groups())),
        n_positive=None if data.labels is None else int(data.labels.sum()),
        threshold=data.threshold,
        excluded_tokens=data.excluded_tokens,
        spread=spread.delta if spread else None,
        spread_n=spread.n if spread else None,
        controls=spec.controls,
        sae=sae_record(spec, bench),
        attribution=None if attribution is None else _attribution(attribution, bench),
        tokens_error=scrubbed(tokens_error) if tokens_error else None,
    )


def _attribution(spec: AttributionSpec, bench: "Bench") -> r.AttributionRecord:
    return r.AttributionRecord(
        method=spec.method,
        baseline=spec.baseline,
        prompts=tuple(
            r.AttributedPrompt(prompt=each.prompt, value=each.value, baseline=each.baseline, steps=each.steps, residual=each.residual)
            for each in bench.attribute(spec)
        ),
    )


def _head(audit: PlannedAudit) -> dict[str, object]:
    return {
        "id": audit.id,
        "file": audit.id.split("::")[0],
        "function": audit.function,
        "title": audit.title,
        "doc": audit.doc,
        "about": audit.mark.about,
        "severity": audit.mark.severity,
        "controls": audit.mark.controls,
        "source_digest": audit.source_digest,
        "unplanned": audit.unplanned,
    }


def _outline(audit: PlannedAudit, node: str) -> AuditOutline:
    detectors = dict.fromkeys(claim.spec.estimate.reading.detector.digest for claim in audit.claims)
    return AuditOutline.model_validate({**_head(audit), "node": node, "faults": tuple(map(scrubbed, audit.faults)), "detectors": tuple(detectors)})


def _audit(result: AuditResult) -> r.AuditRecord:
    return r.AuditRecord.model_validate(
        {
            **_head(result.audit),
            "verdict": result.verdict,
            "error": scrubbed(result.error) if result.error else None,
            "claims": tuple(f"{result.audit.id}#{index}" for index in range(len(result.claims))),
        }
    )


def _claim(result: AuditResult, index: int, decided: DecidedClaim, bench: "Bench", lab: "Laboratory") -> r.ClaimRecord:
    claim, estimate = decided.claim, decided.claim.estimate
    spec, controls = decided.planned.spec.estimate, decided.claim.controls
    suite = bench.read(spec.reading).suite if isinstance(spec, EstimateSpec) else lab.experiment(spec.reading).suite
    dose = spec if isinstance(spec, DoseSpec) else None
    return r.ClaimRecord(
        id=f"{result.audit.id}#{index}",
        audit=result.audit.id,
        index=index,
        line=decided.planned.line,
        about=result.audit.mark.about,
        reading=spec.reading.digest,
        detector=spec.reading.detector.name,
        detector_digest=spec.reading.detector.digest,
        suite=suite.name,
        suite_digest=suite.digest,
        quantity=spec.quantity,
        pairs=spec.pairs,
        strength=None if dose is None else dose.strength,
        over_null=dose is not None and dose.over_null,
        apart=not any(one_source(seen, spec.reading.suite) for seen in spec.reading.detector.suites),
        on=None if dose is None or dose.neutral is None else lab.measured_on(dose).name,
        effect=None if dose is None or dose.neutral is not None else str(dose.reading.effect),
        op=decided.planned.spec.op,
        threshold=claim.threshold,
        text=claim.text,
        verdict=claim.verdict,
        reasons=claim.reasons,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        alpha=estimate.alpha,
        n=estimate.n,
        n_positive=estimate.n_positive,
        groups=estimate.groups,
        method=estimate.method,
        needed_n=claim.needed.n if claim.needed else None,
        needed_groups=claim.needed.groups if claim.needed else None,
        nulls=tuple(_nulls(decided)),
        baselines=tuple(
            r.BaselineRecord(
                name=baseline.name,
                value=baseline.value,
                low=baseline.low,
                high=baseline.high,
                difference=baseline.difference,
                difference_low=baseline.difference_low,
                difference_high=baseline.difference_high,
            )
            for baseline in (controls.baselines if controls else ())
        ),
        selectivity=controls.selectivity if controls else None,
        worst=worst_prompts(decided.planned.spec, bench, lab),
    )


def _nulls(decided: DecidedClaim) -> Iterator[r.NullRecord]:
    estimate = decided.claim.estimate
    for null in decided.claim.controls.nulls if decided.claim.controls else ():
        yield r.NullRecord(
            name=null.name,
            draws=null.draws,
            k=null.k,
            p=null.p,
            passed=null.passed,
            median=null.quantile(0.5),
            high=null.quantile(estimate.alpha if null.downward else 1 - estimate.alpha),
            observed=null.observed,
            decides=null.decides,
            downward=null.downward,
        )
