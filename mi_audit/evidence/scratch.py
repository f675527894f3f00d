"""Places beside a bundle that last as long as one write, or one run of several processes. A process that is killed leaves them behind; the next write of a
bundle into the same folder clears them up.

Whoever works there holds a lock of its own as long as it works, which the system takes from a dead process; so what lies beside a lock that can be had is
nobody's.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = re.compile(r"\.(.+)\.([0-9a-f]{12})\.mi-audit-lock")
_PATIENCE = 60
"""Seconds to wait for a lock of one's own, which others may try but never keep."""


@dataclass(frozen=True)
class Scratch:
    """Names beside a bundle that nobody else has: `new` for what takes its place, `aside` for what it replaces, `parts` for the folder where processes lay
    down what becomes of it, `lock` held while they are in use."""

    new: Path
    aside: Path
    parts: Path
    lock: Path

    @classmethod
    def of(cls, target: Path, token: str) -> "Scratch":
        """The names for one write of `target`."""
        return cls(*(target.with_name(f".{target.name}.{token}.{ending}") for ending in ("new", "replaced", "parts", "mi-audit-lock")))


@contextmanager
def scratch_beside(target: Path) -> Iterator[Scratch]:
    """Clear up what dead processes left beside `target`, then hand out names for one write of it, whose folder exists; nothing stays at them.

    Raises:
        OSError: the folder can't be written.
    """
    target = Path(os.path.abspath(target))
    _recover(target.parent)
    mine = Scratch.of(target, secrets.token_hex(6))
    mine.lock.touch(exist_ok=False)  # says at once why the folder can't be written; FileLock would wait for it to change
    try:
        with FileLock(mine.lock, timeout=_PATIENCE):
            try:
                yield mine
            finally:
                _clear(mine, target)
    finally:
        mine.lock.unlink(missing_ok=True)


def _recover(folder: Path) -> None:
    """Undo the writes into the folder whose processes are dead."""
    for name in os.listdir(folder):
        if found := _LOCK.fullmatch(name):
            target = folder / found[1]
            left = Scratch.of(target, found[2])
            try:
                with FileLock(left.lock, timeout=0):
                    _clear(left, target)
                left.lock.unlink(missing_ok=True)
            except (OSError, Timeout):  # it is in use, or not ours to touch
                continue


def _clear(scratch: Scratch, target: Path) -> None:
    """Remove what a write left, and put back what it had set aside without anything in its place."""
    if scratch.aside.exists() and not os.path.lexists(target):
        os.replace(scratch.aside, target)
    for path in (scratch.new, scratch.aside, scratch.parts):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
