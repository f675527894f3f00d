"""One process to a GPU: a lock file for each in the cache, held while a model is there. It is the operating system's, so it dies with its process."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Final

from filelock import FileLock, Timeout

from mi_audit.errors import ModelError
from mi_audit.model.cache import ENVIRONMENT, cache_dir

SILENT: Final = 5.0
"""Seconds of waiting before anything is said."""
_POLL: Final = 0.2

Say = Callable[[str], None]
"""Tells the user something while a model is loaded."""


def hold_first(names: Sequence[str], say: Say) -> tuple[int, FileLock]:
    """Hold the first of the GPUs that no other process holds, waiting until there is one; gives its index in `names` with its lock.

    A process shares what it holds with itself. The GPU is free again when nothing refers to the lock any more, or the process ends.

    Raises:
        ModelError: the lock files can't be written.
    """
    began, said = time.monotonic(), False
    while True:
        for index, name in enumerate(names):
            lock = _try(name)
            if lock is not None:
                return index, lock
        if not said and time.monotonic() - began >= SILENT:
            which = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
            say(f"waiting for {which}: in use by another mi-audit process")
            said = True
        time.sleep(_POLL)


def hold_all(names: Sequence[str], say: Say) -> tuple[FileLock, ...]:
    """Hold all of the GPUs, in their order, so that of two processes that want them all one goes first.

    Raises:
        ModelError: the lock files can't be written.
    """
    return tuple(hold_first([name], say)[1] for name in names)


def _try(name: str) -> FileLock | None:
    folder = cache_dir() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{re.sub(r'[^A-Za-z0-9-]+', '-', name)}.lock", thread_local=False, is_singleton=True)
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except OSError as error:
        raise ModelError(f"the GPU locks in {folder} can't be used ({error}); set {ENVIRONMENT} to a folder that you can write") from error
    return lock
