"""Batches through the model side by side. On a CPU two passes on a core each are faster than one on both: no core waits for the other."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from threading import local
from typing import TYPE_CHECKING, Final

import torch

from mi_audit.engine.batches import Batch
from mi_audit.engine.cache import Kept
from mi_audit.engine.listening import Listening
from mi_audit.engine.passer import Passer
from mi_audit.engine.site import Site

if TYPE_CHECKING:
    from mi_audit.engine.passing import Work

MOST: Final = 8
"""Passes under way at a time, at most: each holds the activations of its batch, and the interpreter serves one at a time."""


class Workers:
    """Threads that pass batches of one piece of work; the model's listeners are there until `close`.

    On a GPU, and where passes of the model may not run side by side, there is one. How many cores a pass has follows from the machine and its own batch,
    never from the batches beside it: the last digit may depend on it.

    Raises:
        HookPointError: the model has no such hook point as one of the sites.
    """

    def __init__(self, work: "Work") -> None:
        model = work.model.loaded()
        self._work, self._own, self._ending = work, _Own(), ExitStack()
        self._cores = torch.get_num_threads()
        self.number = side_by_side(self._cores) if model.device.type == "cpu" and model.reentrant else 1
        self._listening = self._ending.enter_context(Listening(model, {site.at for site in work.sites}))
        self._threads = ThreadPoolExecutor(self.number, "pass")
        self._ending.callback(torch.set_num_threads, self._cores)
        self._ending.callback(self._threads.shutdown, cancel_futures=True)
        self._ending.callback(self._listening.stop)

    def start(self, batch: Batch, sites: tuple[Site, ...]) -> "Future[dict[Site, Kept]]":
        """Pass a batch through the model as `Passer.read`, as soon as a thread is free; a large one has all the cores."""
        return self._threads.submit(self._read, batch, sites, self._cores if self._work.is_large(batch) else self._cores // self.number)

    def close(self) -> None:
        """End what is under way, and give the cores back."""
        self._ending.close()

    def _read(self, batch: Batch, sites: tuple[Site, ...], cores: int) -> dict[Site, Kept]:
        torch.set_num_threads(cores)  # of this thread; of the process for threads that begin later
        if self._own.passer is None:
            self._own.passer = Passer(self._work, self._listening)
        return self._own.passer.read(batch, sites)


class _Own(local):
    """What is a thread's own."""

    passer: Passer | None = None


def side_by_side(cores: int) -> int:
    """How many passes share so many cores: `MOST` or half as many, whichever number leaves fewest cores idle; no more than there are cores."""
    return max(range(min(cores, MOST // 2), min(cores, MOST) + 1), key=lambda number: (cores // number * number, number))
