"""The end of a run: from its parts to evidence on disk, closing lines for the terminal and an exit code. Needs neither plan nor model."""

import os
import platform
import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mi_audit.config import Settings
from mi_audit.errors import EvidenceError, RenderError
from mi_audit.evidence import records as r
from mi_audit.evidence import store
from mi_audit.evidence.assembly import Assembled, assemble
from mi_audit.evidence.outcome import EVIDENCE_FAILED
from mi_audit.evidence.parts import Parts
from mi_audit.plugins import active
from mi_audit.reporting.renderers import write_reports
from mi_audit.scrubbing import scrubbed
from mi_audit.stats.estimate import described
from mi_audit.stats.verdict import Verdict

Line = tuple[str, str]
"""A colour, or nothing, and a text."""

_COLOURS = {Verdict.PASS: "green", Verdict.INCONCLUSIVE: "yellow", Verdict.FAIL: "red", Verdict.ERROR: "red"}


@dataclass(frozen=True)
class Finished:
    """How a run ended."""

    exit_code: int
    lines: tuple[Line, ...]


def finish(
    parts: Parts, settings: Settings, directory: Path, started: datetime, *, broken: Sequence[str] = (), unwritten: str | None = None, interrupted: bool = False
) -> Finished:
    """Assemble the parts of a run, and write the evidence and the report beside it.

    Args:
        parts: what the processes of the run left.
        settings: of the run.
        directory: where the evidence goes.
        started: when it started.
        broken: audit files that could not be collected.
        unwritten: why a process could not leave its parts; there is then no evidence.
        interrupted: whether the user broke it off.
    """
    lines = list[Line]()
    try:
        outline = parts.outline()
        if unwritten is not None or outline is None:
            raise EvidenceError(unwritten or "no plan was laid down, so nothing can be told of it")
        whole = assemble(outline, parts.parts(), broken, interrupted=interrupted)
        lines.extend(_verdicts(whole.run, settings.model))
        reports = _write(directory, whole, started, settings.formats)
    except RenderError as error:
        return Finished(EVIDENCE_FAILED, (*lines, ("red", f"REPORT NOT WRITTEN: {error}")))
    except EvidenceError as error:
        return Finished(EVIDENCE_FAILED, (*lines, ("red", f"EVIDENCE NOT WRITTEN: {error}"), *earlier_evidence(directory)))
    lines.extend([("", f"evidence: {directory}"), *(("", f"report:   {path}") for path in reports)])
    lines.extend(("yellow", f"activation cache: {trouble}") for trouble in whole.troubles)
    troubled = (reading for reading in whole.run.readings if reading.tokens_error is not None)
    lines.extend(("", f"no token scores of {reading.detector} on {reading.suite}: {reading.tokens_error}") for reading in troubled)
    return Finished(whole.run.exit_code, tuple(lines))


def earlier_evidence(directory: Path) -> Iterator[Line]:
    """A warning, after a run that left no evidence, where that of an earlier run could be taken for its own."""
    if (directory / store.EVIDENCE).exists():
        yield "yellow", f"the evidence in {directory} is of an earlier run"


def _write(directory: Path, whole: Assembled, started: datetime, formats: Sequence[str]) -> list[Path]:
    volatile = r.VolatileRecord(
        run_id=secrets.token_hex(8),
        started=_iso(started),
        ended=_iso(datetime.now(UTC)),
        host={"python": platform.python_implementation(), "system": platform.system(), "machine": platform.machine(), "cores": str(os.cpu_count() or 0)},
        command=tuple(scrubbed(argument) for argument in sys.argv),
        seconds=dict(whole.seconds),
        cache=dict(whole.cache),
        reports={name: active().renderers[name].value.file for name in formats},
    )
    store.write(directory, whole.run, volatile, whole.samples, whole.tokens, whole.files)
    return write_reports(directory, formats)


def _verdicts(run: r.RunRecord, asked_for: str) -> Iterator[Line]:
    """A line an audit, with what did not pass of it, then the run's verdict."""
    claims = {claim.id: claim for claim in run.claims}
    for audit in run.audits:
        colour = _COLOURS[audit.verdict]
        yield colour, f"{audit.verdict:<12}  {audit.about:<10}  {audit.id}"
        if audit.error:
            yield colour, f"    {audit.error}"
        for claim in (claims[name] for name in audit.claims if name in claims):
            if claim.verdict is not Verdict.PASS:
                yield colour, f"    {_claim(claim)}"
    yield "", f"model: {f'{run.model.ref} (root {run.model.root[:12]})' if run.model is not None else f'{asked_for}, which was not loaded'}"
    yield _COLOURS[run.verdict], f"verdict: {run.verdict}"
    if run.partial:
        yield "yellow", f"PARTIAL, this run can't gate: {'; '.join(run.partial)}"


def _claim(claim: r.ClaimRecord) -> str:
    because = f": {'; '.join(claim.reasons)}" if claim.reasons else ""
    said = f"{claim.verdict}  {claim.detector} on {claim.suite}{f', {claim.effect}' if claim.effect else ''}: {claim.text}"
    if claim.value is None or claim.low is None or claim.high is None:
        return f"{said}{because}"
    estimate = described(claim.quantity, claim.value, claim.low, claim.high, claim.n, claim.groups)
    return f"{said}, {estimate}{' in excess of its null' if claim.over_null else ''}{because}"


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
