"""Run an audit's body once without a model and note what it claims.

Estimates are stand-ins that carry no values: comparing one notes a claim, anything else is a fault that names the line, kept even where the body swallows it.
"""

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn, cast

from mi_audit.errors import MiAuditError, PlanError
from mi_audit.plan.measurements import AttributionSpec, ClaimSpec, Measured, Op
from mi_audit.plan.reading import Attributed
from mi_audit.plan.steering import DoseSpec
from mi_audit.stats.claim import vacuous
from mi_audit.stats.estimate import Estimate, NullLevel


@dataclass(frozen=True)
class TracedClaim:
    """A claim and the line of the audit file that makes it."""

    spec: ClaimSpec
    line: int


@dataclass
class Trace:
    """What one pass over an audit's body noted. Claims in the order of the body; faults, with one of which there is no plan; and what is attributed."""

    file: Path
    claims: list[TracedClaim] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    attributions: list[AttributionSpec] = field(default_factory=list)

    def evaluate(self, spec: Measured) -> Estimate:
        """The stand-in for an estimate."""
        return cast(Estimate, _PlannedEstimate(spec, self))

    def attribute(self, spec: AttributionSpec) -> Sequence[Attributed]:
        """Note an attribution; the stand-in for what it gives."""
        if spec not in self.attributions:
            self.attributions.append(spec)
        return cast(Sequence[Attributed], _PlannedAttribution(spec, self))

    def note(self, spec: ClaimSpec) -> None:
        """Note a claim at the line that is running; one that no data could fail, or none could pass, is a fault."""
        reason = vacuous(spec.estimate.quantity, spec.op, spec.threshold)
        if reason is not None:
            self.fault(f"the claim `{spec}` decides nothing: {reason}")
        self.claims.append(TracedClaim(spec, self.line()))

    def fault(self, message: str) -> NoReturn:
        """Record a fault at the line that is running and stop the body; a body that swallows the error still has the fault."""
        self.faults.append(f"{self.file.name}:{self.line()}: {message}")
        raise PlanError(self.faults[-1])

    def line(self) -> int:
        """The line of the audit file that is running now, 0 when none is."""
        frame = sys._getframe()
        while frame is not None and frame.f_code.co_filename != str(self.file):
            frame = frame.f_back  # type: ignore[assignment]
        return frame.f_lineno if frame is not None else 0


_TOUCHED = (
    "{what} of `{spec}` is asked for while planning. An audit's body is a declaration: it runs before any model loads, so it may compare estimates with "
    "numbers and nothing else; explore values in a script with mi.load_model(…)"
)


class _PlannedClaim:
    """A claim whose verdict is not known yet; it lets an `assert` pass so that the claims after it are noted too."""

    def __init__(self, spec: ClaimSpec, trace: Trace) -> None:
        self._spec, self._trace = spec, trace

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> NoReturn:
        self._trace.fault(_TOUCHED.format(what=f"`.{name}`", spec=self._spec))


class _PlannedAttribution:
    """Attributions without values: whatever is asked of them is a fault."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, spec: AttributionSpec, trace: Trace) -> None:
        self._spec, self._trace = spec, trace

    def _touched(self, *_: object) -> NoReturn:
        self._trace.fault(_TOUCHED.format(what="what was attributed", spec=self._spec))

    __bool__ = __len__ = __iter__ = __getitem__ = __contains__ = __eq__ = __ne__ = __str__ = _touched

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._touched()


class _PlannedEstimate:
    """An estimate without a value."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, spec: Measured, trace: Trace) -> None:
        self._spec, self._trace = spec, trace

    def _claim(self, op: Op, threshold: object) -> _PlannedClaim:
        if isinstance(threshold, NullLevel):
            return self._claim_over_null(op, threshold)
        if isinstance(threshold, _PlannedEstimate):
            self._trace.fault(f"`{self._spec}` is compared with another estimate; a claim compares an estimate with a number")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
            self._trace.fault(f"`{self._spec}` is compared with {threshold!r}; a claim compares an estimate with a finite number")
        claim = ClaimSpec(self._spec, op, float(threshold))
        self._trace.note(claim)
        return _PlannedClaim(claim, self._trace)

    def _claim_over_null(self, op: Op, level: NullLevel) -> _PlannedClaim:
        if level.of_spec != self._spec:
            self._trace.fault(f"`{self._spec}` is compared with the null of `{level.of_spec}`; compare it with its own")
        assert isinstance(self._spec, DoseSpec)
        claim = ClaimSpec(replace(self._spec, over_null=True), op, 0.0)
        self._trace.note(claim)
        return _PlannedClaim(claim, self._trace)

    def __ge__(self, threshold: object) -> _PlannedClaim:
        return self._claim(">=", threshold)

    def __gt__(self, threshold: object) -> _PlannedClaim:
        return self._claim(">", threshold)

    def __le__(self, threshold: object) -> _PlannedClaim:
        return self._claim("<=", threshold)

    def __lt__(self, threshold: object) -> _PlannedClaim:
        return self._claim("<", threshold)

    def __eq__(self, other: object) -> NoReturn:
        self._trace.fault(f"`{self._spec}` is compared with `==` or `!=`; an estimate is never equal to a number, claim a side with >=, >, <= or <")

    __ne__ = __eq__

    def __bool__(self) -> NoReturn:
        self._trace.fault(_TOUCHED.format(what="the truth value", spec=self._spec))

    def __float__(self) -> NoReturn:
        self._trace.fault(_TOUCHED.format(what="the value", spec=self._spec))

    __int__ = __index__ = __round__ = __abs__ = __neg__ = __float__

    def _arithmetic(self, other: object) -> NoReturn:
        self._trace.fault(_TOUCHED.format(what="arithmetic on the value", spec=self._spec))

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _arithmetic

    def __str__(self) -> NoReturn:
        self._trace.fault(_TOUCHED.format(what="the text", spec=self._spec))

    def __format__(self, spec: str) -> NoReturn:
        self._trace.fault(_TOUCHED.format(what="the text", spec=self._spec))

    def __repr__(self) -> str:
        return f"<planned {self._spec}>"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._trace.fault(_TOUCHED.format(what=f"`.{name}`", spec=self._spec))


def trace_body(body: Callable[[Trace], object], file: Path) -> Trace:
    """Run `body` with a fresh trace and return what it noted.

    Args:
        body: calls the audit's function with a stand-in model built on the trace's `evaluate` and with its parametrised values.
        file: the audit file, whose lines the messages name.
    """
    trace = Trace(file)
    try:
        returned = body(trace)
    except MiAuditError as error:
        if not trace.faults:
            trace.faults.append(f"{file.name}:{line_of(error, file)}: {error}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 — the body is the user's code: whatever it raises, skips and exits too, is a fault of the audit, reported with its line
        trace.faults.append(f"{file.name}:{line_of(error, file)}: {type(error).__name__} while planning: {error}. {_PLAIN}")
    else:
        if inspect.iscoroutine(returned):
            returned.close()
        if inspect.isawaitable(returned) or inspect.isgenerator(returned) or inspect.isasyncgen(returned):
            trace.faults.append(f"{file.name}: an audit is a plain function; this one is a coroutine or a generator, so its claims would never be made")
    unclaimed = {spec.reading for spec in trace.attributions} - {claim.spec.estimate.reading for claim in trace.claims}
    if unclaimed and not trace.faults:
        trace.faults.append(f"{file.name}: `{min(map(str, unclaimed))}` is attributed, but no claim of this audit rests on it; claim something of it too")
    if not trace.claims and not trace.faults:
        trace.faults.append(f"{file.name}: the audit claims nothing; compare an estimate with a number, e.g. assert model.read(probe, suite).auroc() >= 0.9")
    return trace


_PLAIN = "An audit's body is a declaration of claims: no skips, no negated claims, no conditions on results"


def line_of(error: BaseException, file: Path) -> int:
    """The line of the file at which the error passed through it last, 0 if it never did."""
    line, step = 0, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == str(file):
            line = step.tb_lineno
        step = step.tb_next
    return line
