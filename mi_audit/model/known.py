"""A model that an earlier run loaded and checked, and whose weights are read only if something has to pass through it. No torch."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mi_audit.errors import ModelError
from mi_audit.model.facts import Facts
from mi_audit.model.hook_map import HookMap, HookPoint

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel


class KnownModel:
    """An `AuditedModel` in float32 on a CPU, by its facts; `load` reads the weights of the same files, and `drop` removes facts that prove wrong."""

    balanced = is_low_precision = False
    recalled = True
    memory_left = None

    def __init__(self, facts: Facts, load: "Callable[[], LoadedModel]", drop: Callable[[], None]) -> None:
        self._facts, self._load, self._drop = facts, load, drop
        self._loaded: LoadedModel | None = None
        self._failure: ModelError | None = None
        self.identity, self.self_check, self.packing = facts.identity, facts.self_check, facts.packing
        self.ref, self.n_layers, self.max_length, self.processor = facts.identity.ref, facts.identity.n_layers, facts.max_length, facts.processor
        points = {(point.name, point.layer): point for point in facts.points}
        self.hook_points: HookMap[HookPoint] = HookMap(points, {(name, layer): reason for name, layer, reason in facts.refused}, self.n_layers)

    @property
    def has_weights(self) -> bool:
        """Whether something had to pass through it in this process."""
        return self._loaded is not None

    @property
    def failure(self) -> ModelError | None:
        """Why its weights could not be had, once that was tried; what was said of it before rests on nothing then."""
        return self._failure

    def loaded(self) -> "LoadedModel":
        """The model with its weights. What could not be loaded is not tried again.

        Raises:
            ModelError: the files have changed, can't be loaded, or are not what was known of them.
        """
        if self._failure is not None:
            raise self._failure
        if self._loaded is None:
            self._loaded = self._tried()
        return self._loaded

    def _tried(self) -> "LoadedModel":
        try:
            loaded = self._load()
            if not self._facts.agrees(Facts.of(loaded)):
                self._drop()
                raise ModelError(f"{self.ref} is not what an earlier run found on the same files and software; what that run kept is removed, so run again")
        except ModelError as error:
            self._failure = error
            raise
        except Exception as error:
            self._failure = ModelError(f"{self.ref} can't be loaded: {type(error).__name__}: {error}")
            raise self._failure from error
        return loaded
