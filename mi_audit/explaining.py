"""A claim that did not pass in lines of text, while its audit runs. Prompts appear by id alone: their texts may be harmful or secret."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mi_audit.judging.results import AuditResult
from mi_audit.stats.claim import Claim
from mi_audit.stats.verdict import Verdict

if TYPE_CHECKING:
    from mi_audit.session import Session


def explain(claim: Claim, worst: Sequence[str] = ()) -> list[str]:
    """A claim, the estimate that it was decided on, its controls, what would decide it, and the ids of the prompts that speak most against it."""
    estimate = claim.estimate
    lines = [
        f"{claim.verdict}: {estimate.of}: {claim.text}",
        f"  estimate   {estimate}",
        f"  interval   [{estimate.low:.4g}, {estimate.high:.4g}], each bound one-sided at alpha = {estimate.alpha:g}, {estimate.method}",
        f"  threshold  {claim.threshold:g}",
    ]
    lines.extend(f"  because    {reason}" for reason in claim.reasons)
    if claim.needed is not None:
        lines.append(f"  to decide  {claim.needed}, if the estimate is right")
    if claim.controls is not None:
        lines.extend(
            f"  null       {null.name}: p = {null.p:.3g} with {null.draws} draws{'' if null.decides else ', for comparison'}" for null in claim.controls.nulls
        )
        lines.extend(f"  baseline   {baseline.name}: {baseline.value:.3f} [{baseline.low:.3f}, {baseline.high:.3f}]" for baseline in claim.controls.baselines)
    if worst:
        lines.append(f"  worst      prompts {', '.join(worst)} (texts are not shown; look the ids up in the suite)")
    return lines


def explain_result(result: AuditResult, run: "Session") -> str:
    """Every claim of an audit that did not pass."""
    return "\n".join(line for one in result.claims if one.claim.verdict is not Verdict.PASS for line in explain(one.claim, run.worst_prompts(one.planned.spec)))
