"""Everything that the templates print, computed from a bundle: plain data, no markup."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from mi_audit.errors import EvidenceError
from mi_audit.evidence.experiments import ExperimentRecord
from mi_audit.evidence.ladder import LadderRecord
from mi_audit.evidence.records import AuditRecord, ClaimRecord, DetectorRecord, ReadingRecord, RunRecord, SuiteRecord, VolatileRecord
from mi_audit.evidence.store import Bundle
from mi_audit.reporting import catalogue, facts
from mi_audit.reporting.charts import IntervalPlot, interval_plots
from mi_audit.reporting.charts_sweep import SweepView, sweep_views
from mi_audit.reporting.experiments import ExperimentView, experiment_view
from mi_audit.reporting.queries import measurement_of, query
from mi_audit.reporting.readings import ReadingView, Scores

_Measured = TypeVar("_Measured", ReadingRecord, ExperimentRecord)


@dataclass(frozen=True)
class Detail:
    """How much is printed in full, tokens per heat strip, and of an experiment prompts after which it is shown what the model wrote; the rest is counted and
    left to the Parquet. What did not pass comes first."""

    cards: int
    readings: int
    experiments: int
    rows: int
    tokens: int
    written: int


DETAILS: Final = (
    Detail(150, 80, 60, 2_000, 200, 10),
    Detail(150, 80, 40, 2_000, 100, 5),
    Detail(60, 40, 20, 1_000, 40, 3),
    Detail(30, 15, 10, 500, 40, 3),
    Detail(10, 5, 4, 150, 40, 3),
    Detail(3, 2, 1, 40, 0, 3),
)


@dataclass(frozen=True)
class ClaimView:
    """A claim with where to find what it rests on, a reading or an experiment; both are None where that is left to the Parquet."""

    anchor: str
    audit: "AuditRecord"
    claim: ClaimRecord
    query: str
    plot: IntervalPlot
    reading: int | None
    experiment: int | None
    worst: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Card:
    """An audit in full."""

    number: int
    audit: AuditRecord
    claims: tuple[ClaimView, ...]
    controls: tuple[tuple[str, catalogue.Control | None], ...]
    sweeps: tuple[SweepView, ...]


@dataclass(frozen=True)
class ControlRow:
    """A control (None: its slug is not in the catalogue) and the audits that support it."""

    slug: str
    control: catalogue.Control | None
    audits: tuple[tuple[int, AuditRecord], ...]


@dataclass(frozen=True)
class ClaimTable:
    """Claims of one kind; `left_out` more, all passed unless the report would grow beyond its size, are in claims.parquet."""

    rows: tuple[ClaimView, ...]
    left_out: int


@dataclass(frozen=True)
class Ladders:
    """The detectors on the evidence ladder, and the place in the report of every claim that a rung names; `left_out` more are in `evidence.json`."""

    rows: tuple[LadderRecord, ...]
    places: dict[str, tuple[str, str]]
    left_out: int


@dataclass(frozen=True)
class Page:
    """The report."""

    run: RunRecord
    volatile: VolatileRecord
    headline: str
    scope: str
    gate: str
    tallies: tuple[facts.Tally, ...]
    not_shown: tuple[catalogue.Limit, ...]
    ladders: Ladders
    about_model: ClaimTable
    about_instruments: ClaimTable
    controls: tuple[ControlRow, ...]
    cards: tuple[Card, ...]
    brief: tuple[tuple[int, AuditRecord], ...]
    brief_left_out: int
    numbers: dict[str, int]
    carded: frozenset[int]
    readings: tuple[ReadingView, ...]
    readings_left_out: int
    experiments: tuple[ExperimentView, ...]
    experiments_left_out: int
    detectors: tuple[DetectorRecord, ...]
    suites: tuple[SuiteRecord, ...]
    limits: tuple[catalogue.Limit, ...]


def page(bundle: Bundle, scores: Scores, reports: Path, detail: Detail) -> Page:
    """What to print of a bundle, with texts and controls from the folder `reports`.

    Raises:
        EvidenceError: the sample table does not fit the records, or a file of `reports` is malformed.
    """
    run, known = bundle.run, catalogue.controls(reports)
    texts, holds = catalogue.limits(reports), facts.facts(run)
    numbers = {audit.id: index for index, audit in enumerate(run.audits, start=1)}
    carded = _telling(run.audits, detail.cards)
    in_full = {audit.id for audit in carded}
    shown = {claim.reading for claim in run.claims if claim.audit in in_full}
    readings, experiments = _telling_of(run.readings, run, shown, detail.readings), _telling_of(run.experiments, run, shown, detail.experiments)
    places = {reading.id: index for index, reading in enumerate(readings, start=1)}
    views = _claim_views(run, numbers, places, {experiment.id: index for index, experiment in enumerate(experiments, start=1)}, scores, in_full)
    sweeps = sweep_views(((audit.id, [views[claim].claim for claim in audit.claims]) for audit in carded), run.detectors)
    brief = [(numbers[audit.id], audit) for audit in run.audits if audit.id not in in_full]
    return Page(
        run=run,
        volatile=bundle.volatile,
        headline=facts.headline(run),
        scope=facts.scope(run),
        gate=facts.gate(run),
        tallies=facts.tallies(run),
        not_shown=_that_hold(texts.not_shown, holds),
        ladders=_ladders(run, views, numbers, in_full, detail.rows),
        about_model=_claim_table([view for view in views.values() if view.claim.about == "model"], detail.rows),
        about_instruments=_claim_table([view for view in views.values() if view.claim.about == "instrument"], detail.rows),
        controls=_controls(run, numbers, known, detail.rows),
        cards=tuple(_card(numbers[audit.id], audit, views, known, sweeps[audit.id]) for audit in carded),
        brief=tuple(brief[: detail.rows]),
        brief_left_out=max(len(brief) - detail.rows, 0),
        numbers=numbers,
        carded=frozenset(numbers[audit.id] for audit in carded),
        readings=tuple(scores.view(places[reading.id], reading, detail.tokens) for reading in readings),
        readings_left_out=len(run.readings) - len(readings),
        experiments=tuple(experiment_view(index, experiment, run.claims, detail.written) for index, experiment in enumerate(experiments, start=1)),
        experiments_left_out=len(run.experiments) - len(experiments),
        detectors=run.detectors[: detail.rows],
        suites=run.suites[: detail.rows],
        limits=_that_hold(texts.methods, holds),
    )


def _that_hold(limits: Sequence[catalogue.Limit], holds: dict[str, bool]) -> tuple[catalogue.Limit, ...]:
    unknown = next((limit.when for limit in limits if limit.when not in holds and not limit.when.startswith(("method:", "kind:"))), None)
    if unknown is not None:
        raise EvidenceError(f"limits.json: {unknown!r} is no fact of a run; known are {', '.join(holds)}, method:… and kind:…")
    return tuple(limit for limit in limits if holds.get(limit.when, False))


def _telling(audits: Sequence[AuditRecord], limit: int) -> tuple[AuditRecord, ...]:
    """At most `limit` audits in their own order; what did not pass before what did."""
    ranked = sorted(audits, key=lambda audit: -audit.verdict.severity)[:limit]
    chosen = {audit.id for audit in ranked}
    return tuple(audit for audit in audits if audit.id in chosen)


def _telling_of(records: Sequence[_Measured], run: RunRecord, shown: set[str], limit: int) -> tuple[_Measured, ...]:
    """At most `limit` readings or experiments in their own order: those that audits in full rest on before others, what did not pass before what did."""
    worst: dict[str, int] = {}
    for claim in run.claims:
        worst[claim.reading] = max(worst.get(claim.reading, 0), claim.verdict.severity)
    ranked = sorted(records, key=lambda record: (record.id not in shown, -worst.get(record.id, -1)))[:limit]
    chosen = {record.id for record in ranked}
    return tuple(record for record in records if record.id in chosen)


def _claim_views(
    run: RunRecord, numbers: dict[str, int], readings: dict[str, int], experiments: dict[str, int], scores: Scores, carded: set[str]
) -> dict[str, ClaimView]:
    audits = {audit.id: audit for audit in run.audits}
    made = {experiment.id: experiment for experiment in run.experiments}
    by_audit: dict[str, list[ClaimRecord]] = {}
    for claim in run.claims:
        by_audit.setdefault(claim.audit, []).append(claim)
    plots = {name: plot for claims in by_audit.values() for name, plot in interval_plots(claims).items()}
    views = {}
    for claim in run.claims:
        digests = scores.digests(measurement_of(claim, made.get(claim.reading))) if claim.audit in carded and claim.worst else {}
        views[claim.id] = ClaimView(
            anchor=f"claim-{numbers[claim.audit]}-{claim.index + 1}",
            audit=audits[claim.audit],
            claim=claim,
            query=query(claim, made.get(claim.reading)),
            plot=plots[claim.id],
            reading=readings.get(claim.reading),
            experiment=experiments.get(claim.reading),
            worst=tuple((prompt, digests.get(prompt, "")) for prompt in claim.worst),
        )
    return views


def _claim_table(views: list[ClaimView], limit: int) -> ClaimTable:
    ranked = sorted(views, key=lambda view: -view.claim.verdict.severity)[:limit]
    chosen = {view.anchor for view in ranked}
    return ClaimTable(tuple(view for view in views if view.anchor in chosen), len(views) - len(chosen))


def _ladders(run: RunRecord, views: dict[str, ClaimView], numbers: dict[str, int], carded: set[str], limit: int) -> Ladders:
    """Every claim that a rung names by its number, `audit.claim`, and where it is."""
    rows = run.ladders[:limit]
    named = dict.fromkeys(claim for ladder in rows for rung in ladder.rungs for claim in rung.claims if claim in views)
    places = {}
    for name in named:
        claim = views[name].claim
        place = numbers[claim.audit]
        places[name] = (f"{place}.{claim.index + 1}", views[name].anchor if claim.audit in carded else f"audit-{place}")
    return Ladders(rows, places, len(run.ladders) - len(rows))


def _controls(run: RunRecord, numbers: dict[str, int], known: dict[str, catalogue.Control], limit: int) -> tuple[ControlRow, ...]:
    supporting: dict[str, list[tuple[int, AuditRecord]]] = {}
    for audit in run.audits:
        for slug in audit.controls:
            supporting.setdefault(slug, []).append((numbers[audit.id], audit))
    return tuple(ControlRow(slug, known.get(slug), tuple(audits[:limit])) for slug, audits in sorted(supporting.items())[:limit])


def _card(number: int, audit: AuditRecord, views: dict[str, ClaimView], known: dict[str, catalogue.Control], sweeps: tuple[SweepView, ...]) -> Card:
    claims = tuple(views[claim] for claim in audit.claims)
    return Card(number, audit, claims, tuple((slug, known.get(slug)) for slug in audit.controls), sweeps)
