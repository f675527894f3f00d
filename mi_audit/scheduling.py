"""How pytest-xdist deals out tests by scope where audits may be among them. Imported only where pytest-xdist runs."""

from collections.abc import Callable
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling, LoadGroupScheduling, LoadScopeScheduling


class _Surviving:
    """Forgets what a dead worker had finished: pytest-xdist up to 3.8 hands it to the next worker as nothing to do, and waits for its end for ever."""

    assigned_work: Any

    def remove_node(self, node: Any) -> str | None:
        workload = self.assigned_work[node]
        for scope in [scope for scope, tests in workload.items() if all(tests.values())]:
            del workload[scope]
        crashed: str | None = super().remove_node(node)  # type: ignore[misc]  # of the scheduler beside this class
        return crashed


class _ByScope(_Surviving, LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    pass


class _ByFile(_Surviving, LoadFileScheduling):  # type: ignore[misc]
    pass


class _OneModel(_Surviving, LoadGroupScheduling):  # type: ignore[misc]
    """The audits of a run, which are all of one model, form one group; everything else is grouped by its `xdist_group` marks as ever.

    It goes by what was planned rather than by a mark of our own, since pytest-xdist up to 3.8 hands marks on in a way that pytest 9.2 no longer heeds.
    """

    def __init__(self, config: pytest.Config, log: Any, is_audit: Callable[[str], bool]) -> None:
        super().__init__(config, log)
        self._is_audit = is_audit

    def _split_scope(self, nodeid: str) -> str:
        return "mi-audit" if self._is_audit(nodeid) else super()._split_scope(nodeid)


def scheduler(config: pytest.Config, log: Any, is_audit: Callable[[str], bool]) -> Any:
    """The scheduler for `--dist loadscope`, `loadfile` or `loadgroup`; `is_audit` tells whether a node id is that of an audit."""
    match config.getoption("dist"):
        case "loadscope":
            return _ByScope(config, log)
        case "loadfile":
            return _ByFile(config, log)
        case _:
            return _OneModel(config, log, is_audit)
