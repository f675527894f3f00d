"""The plan in lines of text, for the terminal."""

from collections.abc import Iterator

from mi_audit.plan.plan import Plan
from mi_audit.plan.steering import SteerSpec
from mi_audit.suites.suite import Suite


def lines_of(plan: Plan) -> Iterator[str]:
    """What will be decided, on what, before anything is measured."""
    claims = sum(1 for _ in plan.claims)
    yield f"mi-audit plan {plan.digest[:16]}: {_count(len(plan.audits), 'audit')}, {_count(claims, 'claim')}, alpha {plan.alpha:g} one-sided, seed {plan.seed}"
    for audit in plan.audits:
        yield f"  {audit.mark.about:<10}  {audit.id}"
        for fault in audit.faults:
            yield f"      ERROR  {fault}"
        if audit.unplanned:
            yield f"      UNPLANNED  {audit.unplanned}; it runs, but the run can't gate"
        for claim in audit.claims if not audit.faults else ():
            yield f"      {claim.spec}"
    if plan.detectors:
        yield "  detectors"
    for detector in plan.detectors:
        yield f"      {detector}"
        for use, suite in detector.seen:
            yield f"          {use} {_sized(suite)}"
        if detector.threshold:
            yield f"          threshold {detector.threshold}"
    if plan.experiments:
        yield "  experiments"
    for experiment in plan.experiments:
        yield f"      {experiment}: {_done(experiment)}"
    suites = dict.fromkeys([*(reading.suite for reading in plan.readings), *(each.suite for each in plan.experiments), *plan.neutral])
    if suites:
        yield "  suites"
    for suite in suites:
        yield f"      {_sized(suite)}"
    limited = f" (at most {plan.limit} of each suite that is read)" if plan.limit else ""
    often = "once each, and again for each strength and each draw of a null in an experiment" if plan.experiments else "once each"
    yield f"  {_count(plan.forward_prompts, 'prompt')} pass through the model, {often}{limited}"


def _done(experiment: SteerSpec) -> str:
    """At which strengths and tokens, and what else is asked for."""
    strengths = ", ".join(f"{strength:g}" for strength in experiment.strengths)
    if experiment.action == "project_out":
        parts = ["taken out everywhere" if experiment.everywhere else "taken out where it is read"]
    else:
        parts = ["clamped to 0" if experiment.strengths == (0.0,) else f"strengths {strengths} (unit {experiment.unit})"]
    parts.append(f"{experiment.tokens} tokens" if isinstance(experiment.tokens, str) else str(experiment.tokens))
    if experiment.profile:
        parts.append(f"also at depths {', '.join(f'{depth:g}' for depth in experiment.profile)}")
    return ", ".join([*parts, *([] if experiment.controls else ["without controls"])])


def _sized(suite: Suite) -> str:
    return f"{suite.name}: {_count(len(suite), 'prompt')} in {_count(len(set(suite.groups())), 'group')}, digest {suite.digest[:12]}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
