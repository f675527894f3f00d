"""Hooks for passes in several threads: they are added and removed while no pass of the model is under way, and there for all threads that want the same."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from mi_audit.engine.forking import Fork
from mi_audit.engine.intervening import Intervening
from mi_audit.engine.listening import Listening
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

Wanted = tuple[frozenset[At], At | None, int]
"""The places where something is changed, the one that is read (None for logits), and how many blocks, from the first on, may be skipped."""


class Session:
    """What intervenes on a model, listens to it and skips its first blocks, with the right to pass."""

    def __init__(self, model: "LoadedModel", wanted: Wanted, passes: "Passes") -> None:
        places, at, below = wanted
        self.intervening, self.listening = Intervening(model, places), Listening(model, [] if at is None else [at])
        self.fork = Fork([block.module for block in model.hook_points.decoder.blocks[:below]])
        self.passes = passes


@contextmanager
def shared(model: "LoadedModel", wanted: Wanted) -> Iterator[Session]:
    """The session of all threads that want the same of a model. Whoever holds it around threads that ask for it saves them waiting for each other's passes.

    Raises:
        HookPointError: the model has no such hook point, or it can't be changed.
    """
    with _lock:
        passes = _passes.setdefault(model, Passes())
    with passes.joined(model, wanted) as session:
        yield session


@dataclass(eq=False)
class _Joined:
    """A session, how many hold it, and what ends it."""

    session: Session
    ending: ExitStack
    number: int = 0


@dataclass(eq=False)
class Passes:
    """The passes of a model that are under way, and the sessions that they belong to."""

    _change: Condition = field(default_factory=Condition)
    _under_way: int = 0
    _waiting: int = 0
    _sessions: dict[Wanted, _Joined] = field(default_factory=dict)

    @contextmanager
    def one(self) -> Iterator[None]:
        """A pass: it waits where somebody waits to add or remove hooks."""
        with self._change:
            self._change.wait_for(lambda: not self._waiting)
            self._under_way += 1
        try:
            yield
        finally:
            with self._change:
                self._under_way -= 1
                self._change.notify_all()

    @contextmanager
    def joined(self, model: "LoadedModel", wanted: Wanted) -> Iterator[Session]:
        """The session; made by the first who wants it and ended by the last who leaves it."""
        with self._change:
            if wanted not in self._sessions:
                self._wait()
            if wanted not in self._sessions:  # nor was it made meanwhile
                session = Session(model, wanted, self)
                with ExitStack() as entered:
                    for part in (session.intervening, session.listening, session.fork):
                        entered.enter_context(part)
                    self._sessions[wanted] = _Joined(session, entered.pop_all())
            joined = self._sessions[wanted]
            joined.number += 1
        try:
            yield joined.session
        finally:
            with self._change:
                joined.number -= 1
                if not joined.number:
                    try:
                        self._wait()
                    finally:
                        if not joined.number and self._sessions.get(wanted) is joined:
                            del self._sessions[wanted]
                            joined.ending.close()

    def _wait(self) -> None:
        """Until no pass is under way; none begins before this thread lets go of the lock."""
        self._waiting += 1
        try:
            self._change.wait_for(lambda: not self._under_way)
        finally:
            self._waiting -= 1
            self._change.notify_all()


_lock = Lock()
_passes: "WeakKeyDictionary[LoadedModel, Passes]" = WeakKeyDictionary()
