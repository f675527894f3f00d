"""A model that an earlier run loaded and checked, and whose weights are read only if something has to pass through it. No torch."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mi_audit.errors import ModelError
from mi_audit.model.checks import SelfCheck
from mi_audit.model.facts import Facts
from mi_audit.model.hook_map import HookMap, HookPoint
from mi_audit.model.identity import ModelIdentity
from mi_audit.model.packing import Packing

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel


class KnownModel:
    """A model in float32 on a CPU, by its facts; `load` reads the weights of the same files."""

    balanced = is_low_precision = False
    memory_left = None

    def __init__(self, facts: Facts, load: "Callable[[], LoadedModel]") -> None:
        self._facts, self._load = facts, load
        self._loaded: LoadedModel | None = None
        points = {(point.name, point.layer): point for point in facts.points}
        self.hook_points: HookMap[HookPoint] = HookMap(points, {(name, layer): reason for name, layer, reason in facts.refused}, facts.identity.n_layers)

    @property
    def ref(self) -> str:
        """What it was asked for as."""
        return self._facts.identity.ref

    @property
    def identity(self) -> ModelIdentity:
        """Who it is; its files were digested in this run."""
        return self._facts.identity

    @property
    def self_check(self) -> SelfCheck:
        """What was checked when it was loaded."""
        return self._facts.self_check

    @property
    def packing(self) -> Packing:
        """How its prompts may be batched."""
        return self._facts.packing

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self._facts.identity.n_layers

    @property
    def max_length(self) -> int | None:
        """Context window in tokens, or None if the configuration names none."""
        return self._facts.max_length

    @property
    def processor(self) -> str:
        """The kind of processor, "cpu AVX2"."""
        return self._facts.processor

    @property
    def has_weights(self) -> bool:
        """Whether something had to pass through it in this process."""
        return self._loaded is not None

    def loaded(self) -> "LoadedModel":
        """The model with its weights.

        Raises:
            ModelError: the files have changed, can't be loaded, or are not what was known of them.
        """
        if self._loaded is None:
            loaded = self._load()
            if not self._facts.agrees(Facts.of(loaded)):
                raise ModelError(
                    f"{self.ref} is not what an earlier run found on the same files and software: clear what that run kept with `mi-audit cache clear`"
                )
            self._loaded = loaded
        return self._loaded
