"""Audits under pytest-xdist: what the controller tells its workers, and what it does for them.

Every worker plans all audits and judges those that it is given; it lays each down as a part as soon as it is done. The controller collects nothing and has no
model: it holds the workers' plans against one another, has an audit run again whose worker died, and assembles the parts at the end. Imports nothing heavy.
"""

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from mi_audit.config import Settings
from mi_audit.errors import EvidenceError
from mi_audit.evidence.outcome import NOT_RUN

if TYPE_CHECKING:
    from filelock import FileLock

    from mi_audit.evidence.scratch import Scratch
    from mi_audit.evidence.shards import PartsFolder

MAX_DEATHS: Final = 3
"""An audit whose workers died so often is not begun again."""

_STARTED: Final = "mi_audit_started"
_RESULTS: Final = "mi_audit_results"
_PATIENCE: Final = 10
"""Seconds to wait for a lock of one's own, which others may try but never keep."""
_TOKEN: Final = "mi_audit_token"  # noqa: S105 — a part of a folder's name, nothing secret


@dataclass(frozen=True)
class Share:
    """What the processes of a distributed run have in common: when it started, where the results go, as the controller sees it, and a random part of the
    name of the folder beside them where their parts meet."""

    started: datetime
    results: Path
    token: str
    worker: str | None

    @property
    def scratch(self) -> "Scratch":
        """The names beside the results that are this run's. The first worker that plans an audit makes the folder of the parts."""
        from mi_audit.evidence.scratch import Scratch

        return Scratch.of(self.results, self.token)

    @property
    def folder(self) -> "PartsFolder":
        """The folder of the parts, to write to as this worker, or to read from."""
        from mi_audit.evidence.shards import PartsFolder

        return PartsFolder(self.scratch.parts, self.worker or "controller")


def share_of(config: pytest.Config, settings: Callable[[], Settings]) -> Share | None:
    """This process's share in a distributed run; None where pytest runs in one process."""
    given: dict[str, Any] | None = getattr(config, "workerinput", None)
    if given is not None:
        return Share(datetime.fromisoformat(given[_STARTED]), Path(given[_RESULTS]), given[_TOKEN], given["workerid"])
    if getattr(config.option, "dist", "no") == "no" or not getattr(config.option, "tx", None) or config.option.collectonly:
        return None
    started = datetime.now(UTC)
    return Share(started, settings().directory(started).absolute(), secrets.token_hex(6), None)


class Controller:
    """The controller's side of a distributed run."""

    def __init__(self, config: pytest.Config, share: Share) -> None:
        self._config, self._share = config, share
        self._audits: frozenset[str] | None = None
        self._lock: FileLock | None = None

    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker what the run has in common."""
        node.workerinput |= {_STARTED: self._share.started.isoformat(), _RESULTS: str(self._share.results), _TOKEN: self._share.token}

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Schedulers by scope that survive the death of a worker; with `--dist loadgroup` all audits go to one worker, so that the model is loaded once."""
        if config.getoption("dist") not in ("loadscope", "loadfile", "loadgroup"):
            return None
        from mi_audit.scheduling import scheduler

        return scheduler(config, log, self._is_audit)

    def pytest_xdist_node_collection_finished(self) -> None:
        """Stop where workers planned differently; print the plan when the first of them has it."""
        if not self._share.scratch.parts.is_dir():
            return
        if self._config.getoption("dist") == "each":
            pytest.exit("--dist each runs every audit several times, which is one too many for evidence; use --dist load", returncode=NOT_RUN)
        try:
            self._keep_folder()
            outline = self._share.folder.outline()
        except EvidenceError as error:
            pytest.exit(str(error), returncode=NOT_RUN)
        if outline is None or self._audits is not None:
            return
        self._audits = frozenset(audit.node for audit in outline.audits)
        terminal = self._config.pluginmanager.getplugin("terminalreporter")
        if terminal is not None:
            terminal.ensure_newline()
            for line in outline.lines:
                terminal.write_line(line)

    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport, sched: Any) -> None:
        """An audit whose worker died is run again by another; the death itself is neither a failure nor a pass."""
        if not self._is_audit(crashitem):
            return
        with suppress(NotImplementedError):  # schedulers by scope or group run an unfinished item again by themselves
            sched.mark_test_pending(crashitem)
        report.when, report.outcome = "call", "skipped"
        report.longrepr = (crashitem.split("::")[0], 0, f"{report.longrepr}; it is run again")
        report.user_properties.append(("mi_audit_verdict", "RERUN"))

    def _keep_folder(self) -> None:
        """Lock the parts for as long as this process lives; those of a dead one are cleared up by the next write of evidence beside them.

        Raises:
            EvidenceError: the lock can't be had.
        """
        if self._lock is not None:
            return
        from filelock import FileLock, Timeout

        lock = FileLock(self._share.scratch.lock)
        try:
            lock.acquire(timeout=_PATIENCE)
        except (OSError, Timeout) as error:
            raise EvidenceError(f"{lock.lock_file} can't be locked ({error}); choose another place for the evidence") from error
        self._lock = lock

    def _is_audit(self, node: str) -> bool:
        return self._audits is not None and node in self._audits

    def pytest_unconfigure(self) -> None:
        """The parts are in the evidence, or the run left none."""
        if self._share.scratch.parts.is_dir():
            self._share.folder.remove()
        if self._lock is not None:
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)
