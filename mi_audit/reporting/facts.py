"""What can be said of a run as a whole: its headline, its tallies, and the facts on which the texts about limits depend."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mi_audit.evidence.records import RunRecord
from mi_audit.reporting.text import SHARES, magnitude, number, plural
from mi_audit.stats.verdict import Verdict


@dataclass(frozen=True)
class Tally:
    """How many of a kind have each verdict."""

    title: str
    counts: tuple[tuple[Verdict, int], ...]


def headline(run: RunRecord) -> str:
    """The verdict in one sentence."""
    name = run.model.ref if run.model else "a model that could not be loaded"
    verdicts = Counter(audit.verdict for audit in run.audits)
    total = plural(len(run.audits), "audit")
    if not run.audits:
        return f"No audit of {name} was run."
    if run.verdict is Verdict.PASS:
        return f"All {total} of {name} passed." if len(run.audits) > 1 else f"The audit of {name} passed."
    words = {Verdict.FAIL: "failed", Verdict.ERROR: "could not run", Verdict.INCONCLUSIVE: "could not be decided"}
    parts = [f"{verdicts[verdict]} {word}" for verdict, word in words.items() if verdicts[verdict]]
    if verdicts[Verdict.PASS]:
        parts.append(f"{verdicts[Verdict.PASS]} passed")
    return f"Of {total} of {name}, {_listed(parts)}." if parts else f"{total} of {name}: {run.verdict}."


def scope(run: RunRecord) -> str:
    """What was audited, on which model, in one sentence."""
    by_model = sum(claim.about == "model" for claim in run.claims)
    read = {claim.suite_digest for claim in run.claims}
    prompts = sum(suite.n for suite in run.suites if suite.digest in read)
    model = f"{run.model.ref} ({run.model.architecture}, {magnitude(run.model.parameters)} parameters)" if run.model else "The model"
    if not run.claims:
        return f"{model}: no claim was decided."
    changed = f", and {plural(len(run.experiments), 'experiment')} changed the model along them" if run.experiments else ""
    return (
        f"{plural(len(run.detectors), 'detector')} inside {model} {'was' if len(run.detectors) == 1 else 'were'} read on {plural(prompts, 'prompt')} of"
        f" {plural(len(read), 'suite')}{changed}; {plural(len(run.claims), 'claim')} decided, {by_model} about the model and"
        f" {len(run.claims) - by_model} about the instruments. Each wrongly passes with probability at most {number(100 * run.plan.alpha)}\u00a0%."
    )


def gate(run: RunRecord) -> str:
    """Whether a gate may act on the run, in one sentence."""
    if run.partial:
        return "This run is PARTIAL: it can't gate a release, whatever its verdicts."
    outcome = "lets the model through" if run.verdict is Verdict.PASS else "does not let the model through"
    return f"The whole plan was run, so a gate may act on this result: it {outcome} (exit code {run.exit_code})."


def tallies(run: RunRecord) -> tuple[Tally, ...]:
    """Counts of verdicts over audits, claims about the model and claims about instruments."""
    return (
        _tally("Claims about the model", (claim.verdict for claim in run.claims if claim.about == "model")),
        _tally("Claims about instruments", (claim.verdict for claim in run.claims if claim.about == "instrument")),
        _tally("Audits", (audit.verdict for audit in run.audits)),
    )


def facts(run: RunRecord) -> dict[str, bool]:
    """What holds of the run and what does not, by the names that `limits.json` uses in `when`; `method:…` and `kind:…` of the detectors used hold."""
    experiments = {experiment.id for experiment in run.experiments}
    quantities = {claim.quantity for claim in run.claims if claim.reading not in experiments}
    verdicts = {audit.verdict for audit in run.audits}
    by_model = any(claim.about == "model" for claim in run.claims)
    used = {f"kind:{detector.kind}" for detector in run.detectors} | {f"method:{detector.method}" for detector in run.detectors if detector.method}
    return {
        "always": True,
        "unsigned": True,
        "partial": bool(run.partial),
        "inconclusive": Verdict.INCONCLUSIVE in verdicts,
        "error": Verdict.ERROR in verdicts,
        "model-claims": by_model,
        "no-model-claims": not by_model,
        "refused": run.model is not None and bool(run.model.refused),
        "plugins": bool(run.plugins),
        "low-precision": any(reading.spread is not None for reading in run.readings),
        "controls": any(audit.controls for audit in run.audits),
        "nulls": any(claim.nulls for claim in run.claims),
        "no-controls": any(not claim.nulls for claim in run.claims),
        "baselines": any(claim.baselines for claim in run.claims),
        "experiments": bool(run.experiments),
        "no-experiments": not run.experiments,
        "experiment-nulls": any(point.nulls for experiment in run.experiments for point in experiment.points),
        "side-effects": any(experiment.side_effects for experiment in run.experiments),
        "generations": any(experiment.generations for experiment in run.experiments),
        "clamps": any(experiment.action == "clamp" for experiment in run.experiments),
        "ablations": any(experiment.action == "project_out" for experiment in run.experiments),
        "functions": any(not experiment.recomputable for experiment in run.experiments),
        "ladders": bool(run.ladders),
        "quantity:auroc": "auroc" in quantities,
        "quantity:thresholded": bool(quantities & (SHARES - {"auroc"})),
        "quantity:difference": bool(quantities - SHARES),
        **dict.fromkeys(used, True),
    }


def _tally(title: str, verdicts: Iterable[Verdict]) -> Tally:
    counted = Counter(verdicts)
    return Tally(title, tuple((verdict, counted[verdict]) for verdict in Verdict))


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
