"""Decide every planned claim, hold what an audit's body claimed against its plan, and keep claims about the model to instruments that passed."""

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import cast

from mi_audit.errors import InconclusiveError
from mi_audit.judging.results import AuditResult, DecidedClaim
from mi_audit.plan.detectors import DetectorSpec
from mi_audit.plan.digest import sha256_of_file
from mi_audit.plan.measurements import ClaimSpec, EstimateSpec, Op
from mi_audit.plan.plan import Plan, PlannedAudit, missing_instrument
from mi_audit.plan.reading import Evaluate
from mi_audit.plan.tracing import TracedClaim
from mi_audit.stats.claim import Claim, claims_heard_by, decide
from mi_audit.stats.verdict import Verdict


class Judge:
    """Judges the audits of one plan on one model.

    Args:
        plan: what was fixed before the run.
        evaluate: gives the estimate of a spec; it may raise a `MiAuditError`, which makes the audit an ERROR.
    """

    def __init__(self, plan: Plan, evaluate: Evaluate) -> None:
        self._plan = plan
        self._evaluate = evaluate
        self._results: dict[str, AuditResult] = {}

    def audit(self, planned: PlannedAudit, body: Callable[[], object]) -> tuple[AuditResult, BaseException | None]:
        """Run an audit's body and decide all its claims, those after a failed `assert` too.

        Returns:
            the result, and what the body raised, for the traceback.
        """
        result, raised = self._judge(planned, body)
        self._results[planned.id] = result
        return result, raised

    def fail_to_run(self, planned: PlannedAudit, error: str) -> AuditResult:
        """Record that an audit could not run."""
        self._results[planned.id] = AuditResult(planned, error=error)
        return self._results[planned.id]

    def results(self) -> tuple[AuditResult, ...]:
        """Every audit of the plan, in its order, with claims about the model held against the instruments once more now that every audit has run.

        An audit that never ran is an ERROR: a dropped audit is no absence.
        """
        return tuple(self._final(planned) for planned in self._plan.audits)

    def _final(self, planned: PlannedAudit) -> AuditResult:
        result = self._results.get(planned.id)
        if result is None:
            return AuditResult(planned, error="; ".join(planned.faults) or "the audit was planned but did not run")
        if planned.mark.about != "model":
            return result
        return AuditResult(
            planned, tuple(DecidedClaim(one.planned, self._held_to_instruments(one.claim, finished=True)) for one in result.claims), result.error
        )

    def _judge(self, planned: PlannedAudit, body: Callable[[], object]) -> tuple[AuditResult, BaseException | None]:
        error = _changed(planned.file, planned.source_digest)
        if planned.faults or error:
            return AuditResult(planned, error="; ".join(planned.faults) or error), None
        heard: list[Claim] = []
        raised: BaseException | None = None
        with claims_heard_by(heard.append):
            try:
                body()
            except KeyboardInterrupt:
                raise
            except BaseException as exception:  # noqa: BLE001 — the body is the user's code; what it raises is sorted into verdict and error below
                raised = exception
        try:
            decided = tuple(DecidedClaim(claim, self._decide(planned, claim.spec)) for claim in planned.claims) if not planned.unplanned else _as_heard(heard)
        except Exception as exception:  # noqa: BLE001 — whatever keeps the tool from measuring is an error of the audit, never a verdict on the model
            return AuditResult(planned, error=f"{type(exception).__name__}: {exception}"), raised or exception
        error = _changed(planned.file, planned.source_digest) or _departure(planned, heard, raised)
        return AuditResult(planned, decided, error), raised

    def _decide(self, planned: PlannedAudit, spec: ClaimSpec) -> Claim:
        claim = decide(self._evaluate(spec.estimate), spec.op, spec.threshold)
        return self._held_to_instruments(claim) if planned.mark.about == "model" else claim

    def _held_to_instruments(self, claim: Claim, *, finished: bool = False) -> Claim:
        spec = claim.estimate.spec
        assert isinstance(spec, EstimateSpec)
        reason = self._doubt_of(_spec_of(claim), spec.reading.detector, finished=finished)
        return claim.capped(reason) if reason and reason not in claim.reasons else claim

    def _doubt_of(self, claim: ClaimSpec, detector: DetectorSpec, *, finished: bool) -> str | None:
        """Why the detector can't testify to this claim about the model, or None."""
        instruments = self._plan.instruments_of(detector)
        missing = missing_instrument(claim, (spec for _, spec in instruments))
        if missing:
            return missing
        for audit, spec in instruments:
            result = self._results.get(audit.id)
            if (result is None and finished) or (result is not None and result.error is not None):
                return f"the audit of the instrument {audit.id} did not run to its end"
            verdict = decide(self._evaluate(spec.estimate), spec.op, spec.threshold).verdict
            if verdict is not Verdict.PASS:
                return f"the instrument is not shown to work: `{spec}` is {verdict} in {audit.id}"
        return None


def _changed(file: Path, digest: str) -> str | None:
    try:
        same = sha256_of_file(file) == digest
    except OSError as error:
        return f"{file.name} can't be read any more: {error.strerror}"
    return None if same else f"{file.name} changed after it was planned; run again to plan what it says now"


def _as_heard(heard: list[Claim]) -> tuple[DecidedClaim, ...]:
    """The claims of an unplanned audit, which has no other record of them."""
    return tuple(DecidedClaim(TracedClaim(_spec_of(claim), 0), claim.capped("it was not planned before the run")) for claim in heard)


def _spec_of(claim: Claim) -> ClaimSpec:
    assert isinstance(claim.estimate.spec, EstimateSpec)
    return ClaimSpec(claim.estimate.spec, cast(Op, claim.op), claim.threshold)


def _departure(planned: PlannedAudit, heard: list[Claim], raised: BaseException | None) -> str | None:
    """How the run departed from the plan, in words; None when it kept to it."""
    stopped_by_claim = isinstance(raised, InconclusiveError) or (isinstance(raised, AssertionError) and any(claim.verdict is Verdict.FAIL for claim in heard))
    if raised is not None and not stopped_by_claim:
        return f"the audit raised {type(raised).__name__}: {raised}"
    if planned.unplanned:
        return None if heard else "the audit claims nothing; compare an estimate with a number"
    for index, (claim, traced) in enumerate(zip_longest(heard, planned.claims)):
        if claim is None:
            if stopped_by_claim:
                return None
            return f"the plan's claim {index + 1}, `{traced.spec}` (line {traced.line}), was not made in the run; an audit's body may not depend on results"
        if traced is None:
            return f"the run claims `{_spec_of(claim)}`, which is not in the plan; an audit's body may not depend on results"
        if _spec_of(claim) != traced.spec:
            return (
                f"the run claims `{_spec_of(claim)}` where the plan says `{traced.spec}` (line {traced.line}); thresholds and suites are fixed before the run"
            )
    return None
