"""What the engine and the bench need to know of a model before, and without, its weights. No torch."""

from typing import TYPE_CHECKING, Protocol

from mi_audit.errors import ModelError
from mi_audit.model.checks import SelfCheck
from mi_audit.model.hook_map import HookMap, HookPoint
from mi_audit.model.identity import ModelIdentity
from mi_audit.model.packing import Packing

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel


class AuditedModel(Protocol):
    """The model under audit: loaded, or known from an earlier run and not loaded yet."""

    @property
    def ref(self) -> str:
        """What it was asked for as."""

    @property
    def identity(self) -> ModelIdentity:
        """Who it is."""

    @property
    def self_check(self) -> SelfCheck:
        """What was checked of it when it was loaded."""

    @property
    def packing(self) -> Packing:
        """How its prompts may be batched."""

    @property
    def hook_points(self) -> HookMap[HookPoint]:
        """Where it can be read."""

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""

    @property
    def max_length(self) -> int | None:
        """Context window in tokens, or None if the configuration names none."""

    @property
    def is_low_precision(self) -> bool:
        """Whether any weight is held in fewer digits than float32 has."""

    @property
    def processor(self) -> str:
        """The kind of processor that it computes on, as far as it decides the numbers: "cpu AVX2", or a GPU's name."""

    @property
    def balanced(self) -> bool:
        """Whether it is spread over several devices."""

    @property
    def memory_left(self) -> int | None:
        """Bytes that the smallest of its GPUs has besides the weights; None on a CPU, and where it is the machine's own (MPS)."""

    @property
    def has_weights(self) -> bool:
        """Whether its weights are loaded in this process."""

    @property
    def recalled(self) -> bool:
        """Whether what is said of it, but for the digests of its files, was found by an earlier run."""

    @property
    def failure(self) -> ModelError | None:
        """Why its weights could not be had, once that was tried; what was said of it before rests on nothing then."""

    def loaded(self) -> "LoadedModel":
        """The model with its weights, from the files that `identity` names; they are read when first asked for.

        Raises:
            ModelError: the files have changed, can't be loaded, or are not what was known of them.
        """
