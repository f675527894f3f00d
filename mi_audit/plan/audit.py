"""The `@mi.audit` decorator: what an audit says of itself."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from mi_audit.errors import PlanError
from mi_audit.plan.digest import Json

About = Literal["model", "instrument"]
SEVERITIES = ("low", "medium", "high", "critical")

_ATTRIBUTE = "__mi_audit__"
_SLUG = re.compile(r"[a-z0-9][a-z0-9.-]{0,79}")
_Function = TypeVar("_Function", bound=Callable[..., object])


@dataclass(frozen=True)
class AuditMark:
    """What `@mi.audit(…)` was given."""

    about: About = "model"
    severity: str | None = None
    controls: tuple[str, ...] = ()
    title: str | None = None

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        return {"about": self.about, "severity": self.severity, "controls": list(self.controls), "title": self.title}


def audit(about: About = "model", *, severity: str | None = None, controls: Iterable[str] = (), title: str | None = None) -> Callable[[_Function], _Function]:
    """Mark a function as an audit.

    Args:
        about: `"model"` (does it behave so?) or `"instrument"` (does the detector read what it says?). Claims about the model are at best inconclusive unless
            the instrument claims of every detector that they use pass in the same run on the same model.
        severity: `low`, `medium`, `high` or `critical`.
        controls: slugs of compliance controls that the audit supports, e.g. `"eu-ai-act-15.1"`.
        title: one line for reports; by default the function's name in words.

    Raises:
        PlanError: an argument is of the wrong kind.
    """
    if callable(about):
        raise PlanError("write @mi.audit() with parentheses")
    if about not in ("model", "instrument"):
        raise PlanError(f"@mi.audit(about={about!r}): an audit is about 'model' or 'instrument'")
    if severity is not None and severity not in SEVERITIES:
        raise PlanError(f"@mi.audit(severity={severity!r}): a severity is one of {', '.join(SEVERITIES)}")
    slugs = tuple(controls) if not isinstance(controls, str) else (controls,)
    for slug in slugs:
        if not isinstance(slug, str) or not _SLUG.fullmatch(slug):
            raise PlanError(f"@mi.audit(controls=…): {slug!r} is no slug; write lower-case letters, digits, '.' and '-', e.g. 'eu-ai-act-15.1'")
    mark = AuditMark(about, severity, slugs, title)

    def decorate(function: _Function) -> _Function:
        setattr(function, _ATTRIBUTE, mark)
        return function

    return decorate


def mark_of(function: object) -> AuditMark:
    """The mark of an audit function; an undecorated one is about the model."""
    mark = getattr(function, _ATTRIBUTE, None)
    return mark if isinstance(mark, AuditMark) else AuditMark()


def is_marked(function: object) -> bool:
    """Whether the function carries `@mi.audit(…)`."""
    return isinstance(getattr(function, _ATTRIBUTE, None), AuditMark)
