"""One process to a GPU: a lock file for each in the cache, held while a model is there. It is the operating system's, so it dies with its process."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from filelock import FileLock, Timeout

from mi_audit.errors import ModelError
from mi_audit.model.cache import ENVIRONMENT, cache_dir

SILENT: Final = 5.0
"""Seconds of waiting before anything is said."""
_POLL: Final = 0.2

Say = Callable[[str], None]
"""Tells the user something while a model is loaded."""

_Held = TypeVar("_Held")


def hold_first(names: Sequence[str], say: Say) -> tuple[int, FileLock]:
    """Hold the first of the GPUs that no other process holds, waiting until there is one; gives its index in `names` with its lock.

    A process shares what it holds with itself. The GPU is free again when nothing refers to the lock any more, or the process ends.

    Raises:
        ModelError: the lock files can't be written.
    """
    return _wait_for(lambda: _try_each(names), names[0] if len(names) == 1 else f"one of {', '.join(names)}", say)


def hold_all(names: Sequence[str], say: Say) -> tuple[FileLock, ...]:
    """Hold all of the GPUs, waiting until no other process holds one of them; meanwhile none is held, so that two that wait can't wait for each other.

    Raises:
        ModelError: the lock files can't be written.
    """
    return _wait_for(lambda: _try_all(names), f"all of {', '.join(names)}", say)


def _wait_for(attempt: Callable[[], _Held | None], what: str, say: Say) -> _Held:
    began, said = time.monotonic(), False
    while (held := attempt()) is None:
        if not said and time.monotonic() - began >= SILENT:
            say(f"waiting for {what}: in use by another mi-audit process")
            said = True
        time.sleep(_POLL)
    return held


def _try_each(names: Sequence[str]) -> tuple[int, FileLock] | None:
    return next(((index, lock) for index, name in enumerate(names) if (lock := _try(name)) is not None), None)


def _try_all(names: Sequence[str]) -> tuple[FileLock, ...] | None:
    """In the same order whatever that of `names` is: of two processes that try at once one gets all."""
    taken: list[FileLock] = []
    for name in sorted(names):
        lock = _try(name)
        if lock is None:
            for each in taken:
                each.release()
            return None
        taken.append(lock)
    return tuple(taken)


def _try(name: str) -> FileLock | None:
    folder = cache_dir() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{re.sub(r'[^A-Za-z0-9-]+', '-', name)}.lock", thread_local=False, is_singleton=True)
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:  # a file system without locks has its own name for it
        raise ModelError(f"the GPU locks in {folder} can't be used ({error}); set {ENVIRONMENT} to a folder that you can write") from error
    return lock
