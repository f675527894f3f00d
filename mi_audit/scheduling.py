"""How pytest-xdist deals out audits with `--dist loadgroup`. Imported only where pytest-xdist runs."""

from collections.abc import Callable
from typing import Any

import pytest
from xdist.scheduler import LoadGroupScheduling


class OneModelScheduling(LoadGroupScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """The audits of a run, which are all of one model, form one group; everything else is grouped by its `xdist_group` marks as ever.

    It goes by what was planned rather than by a mark of our own, since pytest-xdist up to 3.8 hands marks on in a way that pytest 9.2 no longer heeds.
    """

    def __init__(self, config: pytest.Config, log: Any, is_audit: Callable[[str], bool]) -> None:
        super().__init__(config, log)
        self._is_audit = is_audit

    def _split_scope(self, nodeid: str) -> str:
        return "mi-audit" if self._is_audit(nodeid) else super()._split_scope(nodeid)
