"""From the parts of a run to the whole: every planned audit once, in the order of the plan, whoever judged it and whether or not it ran.

The parts may come from one process or from many; what comes out is the same.
"""

from collections import ChainMap, Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import pyarrow as pa

from mi_audit.errors import EvidenceError
from mi_audit.evidence.climbing import ladders
from mi_audit.evidence.experiments import ExperimentRecord
from mi_audit.evidence.fields import Record
from mi_audit.evidence.outcome import exit_code
from mi_audit.evidence.parts import AuditOutline, Outline, Part
from mi_audit.evidence.records import (
    AuditHead,
    AuditRecord,
    ClaimRecord,
    DetectorRecord,
    ModelRecord,
    ReadingRecord,
    RunRecord,
    SuiteRecord,
)
from mi_audit.evidence.samples import SampleTable
from mi_audit.evidence.tables import digest_of
from mi_audit.evidence.tokens import TokenTable
from mi_audit.stats.claim import INSTRUMENT_NOT_RUN
from mi_audit.stats.verdict import Verdict

NEVER_RAN: Final = "the audit was planned but did not run"
_PAIR: Final = "pair"

_Kind = TypeVar("_Kind", bound=Record)


@dataclass(frozen=True, eq=False)
class Assembled:
    """The whole of a run; seconds per phase and counts of the cache are summed over processes, `troubles` says why one kept nothing more there."""

    run: RunRecord
    samples: SampleTable
    tokens: TokenTable
    files: Mapping[str, bytes]
    seconds: Mapping[str, float]
    cache: Mapping[str, int]
    troubles: tuple[str, ...]


def assemble(outline: Outline, parts: Iterable[Part], broken: Sequence[str] = (), *, interrupted: bool = False) -> Assembled:
    """Put the parts of a run together.

    An audit that left no part is an ERROR: a dropped audit is no absence. A claim about the model is at best INCONCLUSIVE where an audit of the instrument
    that it rests on is an ERROR or holds a claim that did not pass. `broken` names the audit files that could not be collected: the run is then PARTIAL, and
    its verdict is ERROR.

    Raises:
        EvidenceError: two parts contradict each other, or a part is of no planned audit. What a part lacks is found when the whole is written.
    """
    gathered = _Gathered()
    for part in parts:
        gathered.take(part)
    strange = sorted(place for place, audit in gathered.audits.items() if place >= len(outline.audits) or outline.audits[place].id != audit.id)
    if strange:
        raise EvidenceError(f"the part of {gathered.audits[strange[0]].id} belongs to another plan")
    audits = [gathered.audits.get(place) or _never_ran(planned) for place, planned in enumerate(outline.audits)]
    made = _found(gathered.claims, (claim for audit in audits for claim in audit.claims))
    claims = [_held_to_instruments(claim, outline, audits, made) for claim in made]
    decided = {claim.id: claim.verdict for claim in claims}
    audits = [_judged_again(audit, decided) for audit in audits]
    broken = tuple(dict.fromkeys((*outline.broken, *broken)))
    verdict = Verdict.ERROR if broken else Verdict.worst([audit.verdict for audit in audits])
    partial = (*outline.partial, *(f"{path} could not be collected" for path in broken), *(["it was interrupted"] if interrupted else []))
    readings = _found(gathered.readings, (claim.reading for claim in claims))
    experiments = sorted(gathered.experiments.values(), key=lambda each: (each.detector, each.suite, each.id))
    detectors = _found(gathered.detectors, [*(reading.detector_digest for reading in readings), *(each.detector_digest for each in experiments)])
    suites = sorted(gathered.suites.values(), key=lambda suite: (suite.name, suite.digest))
    samples, tokens = SampleTable(), TokenTable(texts_shown=outline.texts_shown)
    for measurement in (*(reading.id for reading in readings), *(name for each in experiments for name in each.measurements)):
        samples.adopt(measurement, ChainMap(gathered.samples, gathered.broken_off)[measurement])
    for reading in readings:
        if reading.tokens_error is None:
            tokens.adopt(reading.id, gathered.tokens[reading.id])
    run = RunRecord(
        plan=outline.plan,
        model=gathered.model,
        plugins=outline.plugins,
        suites=tuple(suites),
        detectors=tuple(detectors),
        readings=tuple(readings),
        experiments=tuple(experiments),
        ladders=ladders(detectors, suites, experiments, audits, claims),
        audits=tuple(audits),
        claims=tuple(claims),
        verdict=verdict,
        partial=partial,
        exit_code=exit_code([audit.verdict for audit in audits], verdict, partial),
        texts_shown=outline.texts_shown,
    )
    files = {detector.file: gathered.files[detector.file] for detector in detectors if detector.file}
    return Assembled(run, samples, tokens, files, gathered.seconds, gathered.cache, tuple(sorted(gathered.troubles)))


@dataclass
class _Gathered:
    """Records by what names them, each agreed on by all parts that hold it; the rows of experiments that were broken off are apart from `samples`."""

    audits: dict[int, AuditRecord] = field(default_factory=dict)
    claims: dict[str, ClaimRecord] = field(default_factory=dict)
    readings: dict[str, ReadingRecord] = field(default_factory=dict)
    experiments: dict[str, ExperimentRecord] = field(default_factory=dict)
    detectors: dict[str, DetectorRecord] = field(default_factory=dict)
    suites: dict[str, SuiteRecord] = field(default_factory=dict)
    samples: dict[str, pa.Table] = field(default_factory=dict)
    broken_off: dict[str, pa.Table] = field(default_factory=dict)
    tokens: dict[str, pa.Table] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)
    cache: Counter[str] = field(default_factory=Counter)
    troubles: set[str] = field(default_factory=set)
    model: ModelRecord | None = None

    def take(self, part: Part) -> None:
        record = part.record
        self.model = _one_model(self.model, record.model)
        self.audits[record.place] = _agreed(f"the audit {record.audit.id}", self.audits.get(record.place), record.audit)
        for claim in record.claims:
            self.claims[claim.id] = _agreed(f"the claim {claim.id}", self.claims.get(claim.id), claim)
        for detector in record.detectors:
            self.detectors[detector.digest] = _agreed(f"the detector {detector.name}", self.detectors.get(detector.digest), detector)
        for reading in record.readings:
            self._take_reading(reading, part.samples.readings[reading.id], part.tokens.readings.get(reading.id))
        for experiment in record.experiments:
            self._take_experiment(experiment, part.samples.readings)
        for suite in record.suites:
            self.suites[suite.digest] = min(self.suites.get(suite.digest, suite), suite, key=lambda one: (one.name, one.source))
        self.files.update(part.files)
        self.seconds.update(record.seconds)
        self.cache.update(record.cache)
        if record.cache_trouble is not None:
            self.troubles.add(record.cache_trouble)

    def _take_reading(self, reading: ReadingRecord, samples: pa.Table, tokens: pa.Table | None) -> None:
        """A reading, without the trouble that one process had with its tokens and another had not: they only illustrate it."""
        what, known = f"the reading of {reading.detector} on {reading.suite}", self.readings.get(reading.id)
        untroubled = {"tokens_error": None}
        _agreed(what, known and known.model_copy(update=untroubled), reading.model_copy(update=untroubled))
        self.samples[reading.id] = _agreed_samples(what, self.samples.get(reading.id), samples)
        if tokens is not None:
            self.tokens[reading.id] = _agreed_rows(what, self.tokens.get(reading.id), tokens)
        self.readings[reading.id] = min(known or reading, reading, key=lambda one: one.tokens_error or "")

    def _take_experiment(self, experiment: ExperimentRecord, samples: Mapping[str, pa.Table]) -> None:
        """An experiment, with the side effects that either process measured; one that was broken off in one process and finished in another is finished."""
        what, known = f"the experiment on {experiment.detector} and {experiment.suite}", self.experiments.get(experiment.id)
        if known is not None and (known.error is None) == (experiment.error is None):
            without = {"side_effects": (), "error": None}
            _agreed(what, known.model_copy(update=without), experiment.model_copy(update=without))
        taken = min(known or experiment, experiment, key=lambda each: each.error or "")
        curves = {curve.id: curve for curve in known.side_effects} if known is not None else {}
        for curve in experiment.side_effects:
            curves[curve.id] = _agreed(f"the {curve.quantity} of {what}", curves.get(curve.id), curve)
        self.experiments[experiment.id] = taken.model_copy(update={"side_effects": tuple(sorted(curves.values(), key=lambda each: (each.quantity, each.id)))})
        rows = self.samples if experiment.error is None else self.broken_off
        for name in experiment.measurements:
            if name in samples:
                rows[name] = _agreed_rows(what, rows.get(name), samples[name])


def _agreed(what: str, known: _Kind | None, record: _Kind) -> _Kind:
    if known is None or known == record:
        return record
    field_name = next(name for name in type(record).model_fields if getattr(known, name) != getattr(record, name))
    raise EvidenceError(f"two processes disagree on {what}: its {field_name} differs, so one of them measured wrongly; run without -n")


def _agreed_rows(what: str, known: pa.Table | None, rows: pa.Table) -> pa.Table:
    if known is not None and digest_of(known) != digest_of(rows):
        raise EvidenceError(f"two processes disagree on {what}: its numbers differ, so one of them measured wrongly; run without -n")
    return rows


def _agreed_samples(what: str, known: pa.Table | None, rows: pa.Table) -> pa.Table:
    """The rows on which both agree; with their pairs, where only an audit that was not planned needs them."""
    if known is None or known[_PAIR].null_count == rows[_PAIR].null_count:
        return _agreed_rows(what, known, rows)
    _agreed_rows(what, known.drop_columns([_PAIR]), rows.drop_columns([_PAIR]))
    return min(known, rows, key=lambda table: table[_PAIR].null_count)


def _one_model(known: ModelRecord | None, model: ModelRecord | None) -> ModelRecord | None:
    """The model, which all processes must have loaded equal; it may have run on several devices."""
    if known is None or model is None:
        return known or model
    devices = sorted({*known.device.split(", "), *model.device.split(", ")})
    everywhere = {"device": ", ".join(devices)}
    return _agreed("the model", known.model_copy(update=everywhere), model.model_copy(update=everywhere))


def _found(records: Mapping[str, _Kind], names: Iterable[str]) -> list[_Kind]:
    """The records of these names, once each, in this order; one that is missing is left to the check of the whole, which names it."""
    return [records[name] for name in dict.fromkeys(names) if name in records]


def _never_ran(planned: AuditOutline) -> AuditRecord:
    head = {name: getattr(planned, name) for name in AuditHead.model_fields}
    return AuditRecord(**head, verdict=Verdict.ERROR, error="; ".join(planned.faults) or NEVER_RAN, claims=())


def _held_to_instruments(claim: ClaimRecord, outline: Outline, audits: Sequence[AuditRecord], claims: Sequence[ClaimRecord]) -> ClaimRecord:
    """A claim about the model, capped where the audits of its instrument, taken together, don't bear it; any other as it is."""
    if claim.about != "model" or claim.verdict is Verdict.FAIL:
        return claim
    for planned, audit in zip(outline.audits, audits, strict=True):
        if planned.about == "instrument" and claim.detector_digest in planned.detectors and audit.verdict is Verdict.ERROR:
            return _capped(claim, INSTRUMENT_NOT_RUN.format(audit.id))
    for other in claims:
        if other.about == "instrument" and other.detector_digest == claim.detector_digest and other.verdict is not Verdict.PASS:
            shown = f"the instrument is not shown to work: `{other.detector} on {other.suite}: {other.text}` is {other.verdict} in {other.audit}"
            return _capped(claim, shown) if claim.verdict is Verdict.PASS else claim
    return claim


def _capped(claim: ClaimRecord, reason: str) -> ClaimRecord:
    return claim if reason in claim.reasons else claim.model_copy(update={"verdict": Verdict.INCONCLUSIVE, "reasons": (*claim.reasons, reason)})


def _judged_again(audit: AuditRecord, decided: Mapping[str, Verdict]) -> AuditRecord:
    """The audit with the worst verdict of its claims, as they stand now."""
    if audit.error is not None:
        return audit
    return audit.model_copy(update={"verdict": Verdict.worst([decided[claim] for claim in audit.claims if claim in decided])})
