"""From a run and its results to evidence on disk. This is where measuring and evidence meet; neither knows of the other."""

import hashlib
import os
import platform
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mi_audit.evidence import records as r
from mi_audit.evidence import store
from mi_audit.evidence.samples import Arm, SampleTable
from mi_audit.evidence.tokens import TokenTable
from mi_audit.judging.results import AuditResult, DecidedClaim
from mi_audit.plan.detectors import DetectorSpec
from mi_audit.plan.measurements import EstimateSpec, ReadSpec
from mi_audit.stats.verdict import Verdict
from mi_audit.suites.suite import Suite
from mi_audit.token_table import add_token_scores
from mi_audit.worst import worst_prompts

if TYPE_CHECKING:
    from mi_audit.detectors.bench import Bench
    from mi_audit.detectors.sweeping import Curve
    from mi_audit.model.loaded import LoadedModel
    from mi_audit.session import Session


def record(run: "Session", results: Sequence[AuditResult], exit_code: int) -> list[str]:
    """Write the evidence of a run, and the report beside it.

    Returns:
        lines that say where they are.

    Raises:
        EvidenceError: the evidence can't be written; nothing half-written is left.
    """
    assert run.plan is not None
    specs = _estimates_used(results)
    readings = list(dict.fromkeys(spec.reading for spec in specs))
    pairs = {spec.reading: spec.pairs for spec in specs if spec.pairs}
    samples, tokens = SampleTable(), TokenTable(texts_shown=run.settings.texts == "shown")
    files: dict[str, bytes] = {}
    suites: dict[str, Suite] = {}
    detectors: list[r.DetectorRecord] = []
    taken: list[r.ReadingRecord] = []
    if run.bench is not None and run.model is not None:
        for spec in dict.fromkeys(reading.detector for reading in readings):
            curve = run.bench.curve(spec)
            detectors.append(_detector(spec, run.bench, curve, files))
            suites.update((suite.digest, suite) for suite in (*spec.suites, *([curve.validation] if curve else [])))
        missing = add_token_scores(run.model, run.bench, readings, tokens, run.seconds)
        for reading in readings:
            taken.append(_reading(reading, run.bench, samples, suites, pairs.get(reading), missing.get(reading)))
    claims = [_claim(result, index, decided, run.bench) for result in results for index, decided in enumerate(result.claims) if run.bench is not None]
    evidence = r.RunRecord(
        plan=r.PlanRecord(
            digest=run.plan.digest,
            alpha=run.plan.alpha,
            seed=run.plan.seed,
            limit=run.plan.limit,
            audits=len(run.plan.audits),
            claims=sum(1 for _ in run.plan.claims),
        ),
        model=_model(run.model) if run.model is not None else None,
        suites=tuple(_suite(suite) for suite in suites.values()),
        detectors=tuple(detectors),
        readings=tuple(taken),
        audits=tuple(_audit(result) for result in results),
        claims=tuple(claims),
        verdict=Verdict.worst([result.verdict for result in results]),
        partial=tuple(run.partial),
        exit_code=exit_code,
        texts_shown=run.settings.texts == "shown",
    )
    volatile = r.VolatileRecord(
        run_id=secrets.token_hex(8),
        started=_iso(run.started),
        ended=_iso(datetime.now(UTC)),
        host={"python": platform.python_implementation(), "system": platform.system(), "machine": platform.machine(), "cores": str(os.cpu_count() or 0)},
        command=tuple(_scrubbed(argument) for argument in sys.argv),
        seconds=run.seconds,
        cache=_cache(run),
    )
    notes = [f"no token scores of {each.detector} on {each.suite}: {each.tokens_error}" for each in taken if each.tokens_error is not None]
    if run.settings.format == "none":
        store.write(run.directory, evidence, volatile, samples, tokens, files)
        return [f"evidence: {run.directory}", *notes]
    from mi_audit.reporting.html import render

    store.write(run.directory, evidence, volatile, samples, tokens, files, render)
    return [f"evidence: {run.directory}", f"report:   {run.directory / store.REPORT}", *notes]


def _cache(run: "Session") -> dict[str, int]:
    captured = run.bench.captured if run.bench is not None else None
    return {} if captured is None else {"prompts passed": captured.prompts, "prompts found": captured.cached}


def _estimates_used(results: Sequence[AuditResult]) -> list[EstimateSpec]:
    specs = (decided.claim.estimate.spec for result in results for decided in result.claims)
    return list(dict.fromkeys(spec for spec in specs if isinstance(spec, EstimateSpec)))


def _model(model: "LoadedModel") -> r.ModelRecord:
    identity, check = model.identity, model.self_check
    return r.ModelRecord(
        ref=identity.ref if identity.source in ("shipped", "hub") else Path(identity.ref).name,
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
    )


def _detector(spec: DetectorSpec, bench: "Bench", curve: "Curve | None", files: dict[str, bytes]) -> r.DetectorRecord:
    fitted = bench.detector(spec)
    content = fitted.to_bytes()
    name = f"{store.DETECTORS}/{spec.name}.safetensors"
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


def _reading(spec: ReadSpec, bench: "Bench", samples: SampleTable, suites: dict[str, Suite], pairs: str | None, tokens_error: str | None) -> r.ReadingRecord:
    data = bench.read(spec)
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
        controls=spec.controls,
        tokens_error=_scrubbed(tokens_error) if tokens_error else None,
    )


def _audit(result: AuditResult) -> r.AuditRecord:
    audit = result.audit
    return r.AuditRecord(
        id=audit.id,
        file=audit.id.split("::")[0],
        function=audit.function,
        title=audit.title,
        doc=audit.doc,
        about=audit.mark.about,
        severity=audit.mark.severity,
        controls=audit.mark.controls,
        source_digest=audit.source_digest,
        unplanned=audit.unplanned,
        verdict=result.verdict,
        error=_scrubbed(result.error) if result.error else None,
        claims=tuple(f"{audit.id}#{index}" for index in range(len(result.claims))),
    )


def _claim(result: AuditResult, index: int, decided: DecidedClaim, bench: "Bench") -> r.ClaimRecord:
    claim, estimate = decided.claim, decided.claim.estimate
    spec = decided.planned.spec.estimate
    data = bench.read(spec.reading)
    controls = estimate.controls
    return r.ClaimRecord(
        id=f"{result.audit.id}#{index}",
        audit=result.audit.id,
        index=index,
        line=decided.planned.line,
        about=result.audit.mark.about,
        reading=spec.reading.digest,
        detector=spec.reading.detector.name,
        detector_digest=spec.reading.detector.digest,
        suite=data.suite.name,
        suite_digest=data.suite.digest,
        quantity=spec.quantity,
        pairs=spec.pairs,
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
        worst=worst_prompts(decided.planned.spec, data),
    )


def _nulls(decided: DecidedClaim) -> Iterator[r.NullRecord]:
    estimate = decided.claim.estimate
    for null in estimate.controls.nulls if estimate.controls else ():
        yield r.NullRecord(
            name=null.name,
            draws=null.draws,
            k=null.k,
            p=null.p,
            passed=null.passed,
            median=null.quantile(0.5),
            high=null.quantile(1 - estimate.alpha),
            observed=null.observed,
            decides=null.decides,
        )


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _scrubbed(text: str) -> str:
    """The text without absolute paths, which name people and machines: of each only the last part stays."""
    return re.sub(r"(?<![\w.])(?:~|[A-Za-z]:|\.{1,2})?[/\\](?:[^\s'\"/\\]+[/\\])+([^\s'\"/\\]*)", r"…/\1", text.replace(str(Path.home()), "~"))
