"""What pytest collected, as audits to plan."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from mi_audit.plan.plan import PlannedAudit

_HOME_OF_MODEL: Final = "mi_audit.pytest_plugin"


def is_audit(item: pytest.Item) -> bool:
    """Whether the item is a function of an audit file."""
    if not item.path.name.startswith("audit_"):
        return False
    from mi_audit.collection import AuditModule

    return isinstance(item.parent, AuditModule)


def holds_audits(folder: Path) -> bool:
    """Whether it is a folder with audit files in it."""
    if not folder.is_dir():
        return False
    from mi_audit.collection import is_audit_file

    found = (path for path in folder.rglob("audit_*.py") if not _installed(path.relative_to(folder)))
    return any(is_audit_file(path) for path in found)


def _installed(path: Path) -> bool:
    """Whether it lies in a virtual environment or a hidden folder, where pytest does not look for tests."""
    return any(part.startswith(".") or part == "site-packages" for part in path.parts)


def properties(report: pytest.TestReport) -> dict[str, str]:
    """What we noted in a report; other projects' plugins may note there what they like."""
    noted = (entry for entry in report.user_properties if isinstance(entry, tuple | list) and len(entry) == 2)
    return {name: str(value) for name, value in noted if isinstance(name, str) and name.startswith("mi_audit_")}


def uses_our_model(item: pytest.Function) -> bool:
    """Whether the item takes our `model` fixture, and not one by which the project overrides it."""
    definitions = item._fixtureinfo.name2fixturedefs.get("model", ())
    return bool(definitions) and getattr(definitions[-1].func, "__module__", None) == _HOME_OF_MODEL


def plan_item(item: pytest.Function) -> "PlannedAudit":
    """Trace an audit. Its id is made of its file and its name, whatever a plugin adds to its node id."""
    from mi_audit.auditor import Auditor
    from mi_audit.collection import AuditModule
    from mi_audit.plan.planner import plan_audit

    module = item.getparent(AuditModule)
    assert module is not None
    parameters = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    asked = [*item._fixtureinfo.argnames, *(name for mark in item.iter_markers("usefixtures") for name in mark.args)]
    foreign = [name for name in asked if name != "model" and name not in parameters]
    if "model" in item._fixtureinfo.argnames and not uses_our_model(item):
        foreign.append("model (overridden by the project)")
    return plan_audit(
        item.function,
        file=item.path,
        root=item.config.rootpath,
        source_digest=module.source_digest,
        item_name=item.name,
        parameters={name: value for name, value in parameters.items() if name in item._fixtureinfo.argnames},
        takes_model="model" in item._fixtureinfo.argnames,
        foreign_fixtures=tuple(foreign),
        stand_in=Auditor,
    )


def partial_reasons(config: pytest.Config, deselected: int) -> list[str]:
    """Options that leave audits out, whether or not they did so this time; such a run can't gate."""
    option = config.option
    named = {
        "-k": option.keyword,
        "-m": option.markexpr,
        "-x or --maxfail": option.maxfail,
        "--lf": getattr(option, "lf", False),
        "--sw": getattr(option, "stepwise", False),
        "--deselect": option.deselect,
        "--ignore": option.ignore or option.ignore_glob,
        "single audits were named": any("::" in argument for argument in config.args),
    }
    reasons = [name for name, value in named.items() if value]
    return reasons or ([f"{deselected} audits were deselected"] if deselected else [])
