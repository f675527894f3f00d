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
    """Threads that pass batches of one piece of work, of which there are so many; the model's listeners are there until `close`.

    On a GPU, and where passes of the model may not run side by side, there is one. Numbers do not depend on which thread passes a batch, or when.

    Raises:
        HookPointError: the model has no such hook point as one of the sites.
    """

    def __init__(self, work: "Work", batches: int) -> None:
        model = work.model.loaded()
        self._work, self._own, self._ending = work, local(), ExitStack()
        self._cores = torch.get_num_threads()
        self.number = min(self._cores, MOST, batches) if model.device.type == "cpu" and model.reentrant else 1
        self._listening = self._ending.enter_context(Listening(model, {site.at for site in work.sites}))
        self._threads = ThreadPoolExecutor(self.number, "pass", self._begin)
        self._ending.callback(torch.set_num_threads, self._cores)
        self._ending.callback(self._threads.shutdown, cancel_futures=True)
        self._ending.callback(self._listening.stop)

    def start(self, batch: Batch, sites: tuple[Site, ...]) -> "Future[dict[Site, Kept]]":
        """Pass a batch through the model as `Passer.read`, as soon as a thread is free."""
        return self._threads.submit(lambda: self._own.passer.read(batch, sites))

    def close(self) -> None:
        """End what is under way, and give the cores back."""
        self._ending.close()

    def _begin(self) -> None:
        if self.number > 1:
            torch.set_num_threads(self._cores // self.number)  # of this thread; of the process for threads that begin later
        self._own.passer = Passer(self._work, self._listening)
