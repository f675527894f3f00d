"""Forward passes of one model, one or several at a time, heard at chosen places and stopped after the deepest."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from threading import Event, local
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from mi_audit.errors import HookPointError
from mi_audit.model.full_precision import use_full_precision
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

Hear = Callable[[At, Tensor], None]


class Listening:
    """Listeners at places of a model and where the attention sinks at them are seen, a context manager: they are there inside of it and gone afterwards, also
    after an error. Of those at one module the one at the earlier hook point hears first.

    They are neither added nor removed while a pass is under way, which torch's hooks would not bear, and each hears for the pass of its own thread.

    Raises:
        HookPointError: the model has no such hook point; on entering.
    """

    def __init__(self, model: "LoadedModel", places: Iterable[At]) -> None:
        self._model = model
        self._places = {place for at in places for place in (model.hook_points.sinks_seen_at(at), at)}
        self._listeners, self._own, self._stopped = ExitStack(), _Own(), Event()

    def __enter__(self) -> Self:
        points = self._model.hook_points
        with ExitStack() as added:
            for block in points.decoder.blocks:
                added.callback(block.module.register_forward_pre_hook(self._go_on).remove)
            for tap, at in sorted(((points.resolve(at.point, at.layer), at) for at in self._places), key=lambda pair: pair[0].order):
                added.callback(tap.listen(partial(self._heard, at)).remove)
            self._listeners = added.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listeners.close()

    def pass_through(self, places: set[At], called: dict[str, Any], hear: Hear) -> None:
        """Call the decoder, let `hear` have the activation at each of the places, and end the pass after the deepest.

        Raises:
            HookPointError: the pass did not come by a place.
            ModelError: the environment takes digits off float32.
        """
        use_full_precision()
        missed = set(places)
        self._own.passing = hear, missed
        try:
            with torch.inference_mode():
                self._model.base(**called)
        except _DeepestRead:
            return
        finally:
            self._own.passing = None  # with what `hear` holds
        raise HookPointError(f"the forward pass did not come by {', '.join(sorted(map(str, missed)))}; load the model again to resolve its hook points")

    def stop(self) -> None:
        """End the passes that are under way at their next block; whoever waits for them gets an exception."""
        self._stopped.set()

    def _heard(self, at: At, acts_RLD: Tensor) -> None:
        hear, waiting = self._own.passing or (None, set[At]())
        if hear is None or at not in waiting:
            return
        hear(at, acts_RLD)
        waiting.discard(at)
        if not waiting:
            raise _DeepestRead

    def _go_on(self, *_: object) -> None:
        if self._stopped.is_set():
            raise _Stopped


class _Own(local):
    """What is a thread's own: who hears its pass, and the places that it has yet to come by."""

    passing: tuple[Hear, set[At]] | None = None


class _DeepestRead(Exception):  # noqa: N818 — no error: it ends a forward pass whose remaining blocks nobody reads
    """All places of this pass are read."""


class _Stopped(Exception):  # noqa: N818 — no error: nobody waits for this pass any more
    """The passes were stopped."""
