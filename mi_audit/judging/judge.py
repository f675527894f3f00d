"""Decide every planned claim, hold what an audit's body claimed against its plan, and keep claims about the model to instruments that passed."""

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import cast

from mi_audit.errors import InconclusiveError, MiAuditError
from mi_audit.judging.results import AuditResult, DecidedClaim
from mi_audit.plan.digest import sha256_of_file
from mi_audit.plan.measurements import ClaimSpec, EstimateSpec, Op
from mi_audit.plan.plan import Plan, PlannedAudit, missing_instrument
from mi_audit.plan.reading import Evaluate
from mi_audit.plan.steering import DoseSpec
from mi_audit.plan.tracing import TracedClaim
from mi_audit.stats.claim import INSTRUMENT_NOT_RUN, Claim, claims_heard_by, decide
from mi_audit.stats.verdict import Verdict


class Judge:
    """Judges the audits of one plan on one model.

    Args:
        plan: what was fixed before the run.
        evaluate: gives the estimate of a spec; it may raise a `MiAuditError`, which makes the audit an ERROR.
    """

    def __init__(self, plan: Plan, evaluate: Evaluate) -> None:
        self.plan = plan
        self._evaluate = evaluate
        self._errors: set[str] = set()

    def audit(self, planned: PlannedAudit, body: Callable[[], object]) -> tuple[AuditResult, BaseException | None]:
        """Run an audit's body and decide all its claims, those after a failed `assert` too.

        Returns:
            the result, and what the body raised, for the traceback.
        """
        result, raised = self._judge(planned, body)
        if result.error is not None:
            self._errors.add(planned.id)
        return result, raised

    def fail_to_run(self, planned: PlannedAudit, error: str) -> AuditResult:
        """The result of an audit that could not run."""
        self._errors.add(planned.id)
        return AuditResult(planned, error=error)

    def doubt(self, planned: PlannedAudit) -> str | None:
        """The audit of an instrument, already known to be an ERROR, that an audit of the model rests on, in words; None if there is none.

        Only the end of the run knows all of them, so this is for the terminal: the evidence is held to its instruments when it is assembled.
        """
        if planned.mark.about != "model":
            return None
        detectors = dict.fromkeys(claim.spec.estimate.reading.detector for claim in planned.claims)
        failed = (audit.id for detector in detectors for audit, _ in self.plan.instruments_of(detector) if audit.id in self._errors)
        return next(map(INSTRUMENT_NOT_RUN.format, failed), None)

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
        return self._held_to_instruments(claim, spec) if planned.mark.about == "model" else claim

    def _held_to_instruments(self, claim: Claim, spec: ClaimSpec) -> Claim:
        reason = self._doubt_of(spec)
        return claim.capped(reason) if reason else claim

    def _doubt_of(self, claim: ClaimSpec) -> str | None:
        """Why the claims about its instrument don't bear this claim about the model, or None."""
        instruments = self.plan.instruments_of(claim.estimate.reading.detector)
        missing = missing_instrument(claim, (spec for _, spec in instruments))
        if missing:
            return missing
        for audit, spec in instruments:
            try:
                verdict = decide(self._evaluate(spec.estimate), spec.op, spec.threshold).verdict
            except MiAuditError:  # raised again in the instrument's own audit, whose error it is
                return INSTRUMENT_NOT_RUN.format(audit.id)
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
    assert isinstance(claim.estimate.spec, EstimateSpec | DoseSpec)
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
