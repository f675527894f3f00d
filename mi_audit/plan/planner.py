"""Turn an audit function into its part of the plan."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mi_audit.plan.audit import mark_of
from mi_audit.plan.plan import PlannedAudit
from mi_audit.plan.reading import Attribute, Evaluate
from mi_audit.plan.tracing import trace_body


def audit_id(file: Path, root: Path, item_name: str) -> str:
    """An audit's name that is the same on every machine: its file relative to the run's root folder, its function with the parameters' ids."""
    place = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
    return f"{place}::{item_name}"


def plan_audit(
    function: Callable[..., object],
    *,
    file: Path,
    root: Path,
    source_digest: str,
    item_name: str,
    parameters: dict[str, Any],
    takes_model: bool,
    foreign_fixtures: tuple[str, ...],
    stand_in: Callable[[Evaluate, Attribute], object],
) -> PlannedAudit:
    """Trace one audit.

    Args:
        function: the audit's function.
        file: the file it stands in.
        root: the run's root folder, which ids are relative to.
        source_digest: SHA-256 of the bytes of that file that were run.
        item_name: the function's name with its parameters' ids, e.g. `audit_reads[0.9]`.
        parameters: parametrised values by argument name.
        takes_model: whether the function takes the `model` fixture.
        foreign_fixtures: other fixtures that it needs; such an audit can't be traced and is marked unplanned.
        stand_in: builds what `model` is while planning, from the trace's `evaluate` and `attribute`.
    """
    base = PlannedAudit(
        id=audit_id(file, root, item_name),
        file=file,
        function=getattr(function, "__name__", item_name),
        source_digest=source_digest,
        mark=mark_of(function),
        doc=(function.__doc__ or "").strip(),
    )
    if foreign_fixtures:
        return replace(
            base,
            unplanned=f"it uses the fixture{'s' if len(foreign_fixtures) > 1 else ''} {', '.join(foreign_fixtures)}, so its claims are known only in the run",
        )
    if not takes_model:
        return replace(base, faults=(f"{file.name}: {base.function} does not take `model`, so it can claim nothing of it; write def {base.function}(model):",))
    trace = trace_body(lambda trace: function(model=stand_in(trace.evaluate, trace.attribute), **parameters), file)
    return replace(base, claims=tuple(trace.claims), attributions=tuple(trace.attributions), faults=tuple(trace.faults))
