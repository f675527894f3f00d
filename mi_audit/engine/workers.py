"""Batches through the model side by side. On a CPU two passes on a core each are faster than one on both: no core waits for the other."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from threading import local
from typing import TYPE_CHECKING, Final, TypeVar

import torch

from mi_audit.engine.batches import Batch
from mi_audit.engine.cache import Kept
from mi_audit.engine.listening import Listening
from mi_audit.engine.passer import Passer
from mi_audit.engine.site import Site
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.engine.passing import Work
    from mi_audit.model.loaded import LoadedModel

MOST: Final = 8
"""Passes under way at a time, at most: each holds the activations of its batch, and the interpreter serves one at a time."""

T = TypeVar("T")


class SideBySide:
    """Threads for the passes of one model, with its listeners, which are there until `close`.

    On a GPU, and where passes of the model may not run side by side, there is one. How many cores a pass has follows from the machine and from what passes,
    never from what passes beside it: the last digit may depend on it.

    Raises:
        HookPointError: the model has no such hook point as one of the places.
    """

    def __init__(self, model: "LoadedModel", places: set[At]) -> None:
        self._ending, self._cores = ExitStack(), torch.get_num_threads()
        self.number = side_by_side(self._cores) if model.device.type == "cpu" and model.reentrant else 1
        self.listening = self._ending.enter_context(Listening(model, places))
        self._threads = ThreadPoolExecutor(self.number, "pass")
        self._ending.callback(torch.set_num_threads, self._cores)
        self._ending.callback(self._threads.shutdown, cancel_futures=True)
        self._ending.callback(self.listening.stop)

    def start(self, passing: Callable[[], T], *, large: bool = False) -> Future[T]:
        """Call it as soon as a thread is free; a large one has all the cores."""
        return self._threads.submit(_with_cores, self._cores if large else self._cores // self.number, passing)

    def close(self) -> None:
        """End what is under way, and give the cores back."""
        self._ending.close()


class Workers:
    """Passes batches of one piece of work, several at a time (`SideBySide`), until `close`."""

    def __init__(self, work: "Work") -> None:
        self._work, self._own = work, _Own()
        self._threads = SideBySide(work.model.loaded(), {site.at for site in work.sites})

    @property
    def number(self) -> int:
        """How many batches pass at a time."""
        return self._threads.number

    def start(self, batch: Batch, sites: tuple[Site, ...]) -> "Future[dict[Site, Kept]]":
        """Pass a batch through the model as `Passer.read`, as soon as a thread is free; a large one has all the cores."""
        return self._threads.start(partial(self._read, batch, sites), large=self._work.is_large(batch))

    def close(self) -> None:
        """End what is under way, and give the cores back."""
        self._threads.close()

    def _read(self, batch: Batch, sites: tuple[Site, ...]) -> dict[Site, Kept]:
        if self._own.passer is None:
            self._own.passer = Passer(self._work, self._threads.listening)
        return self._own.passer.read(batch, sites)


class _Own(local):
    """What is a thread's own."""

    passer: Passer | None = None


def side_by_side(cores: int) -> int:
    """How many passes share so many cores: `MOST` or half as many, whichever number leaves fewest cores idle; no more than there are cores."""
    return max(range(min(cores, MOST // 2), min(cores, MOST) + 1), key=lambda number: (cores // number * number, number))


def _with_cores(cores: int, passing: Callable[[], T]) -> T:
    torch.set_num_threads(cores)  # of this thread; of the process for threads that begin later
    return passing()
