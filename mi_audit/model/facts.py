"""What loading a model finds out about it, as plain data that outlives the process. No torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mi_audit.model.checks import SelfCheck
from mi_audit.model.hook_map import HookPoint
from mi_audit.model.identity import ModelIdentity
from mi_audit.model.packing import Packing

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class Facts:
    """Who a model is, what its checks gave, where it can be read and not (name, layer, reason), its context window, and what it computes on."""

    identity: ModelIdentity
    self_check: SelfCheck
    packing: Packing
    points: tuple[HookPoint, ...]
    refused: tuple[tuple[str, int | None, str], ...]
    max_length: int | None
    processor: str

    @classmethod
    def of(cls, model: "LoadedModel") -> "Facts":
        """The facts of a model that is loaded."""
        points = tuple(HookPoint(tap.name, tap.layer, tap.width) for tap in model.hook_points.taps)
        return cls(model.identity, model.self_check, model.packing, points, model.hook_points.refused, model.max_length, model.processor)

    def agrees(self, other: "Facts") -> bool:
        """Whether both are of one model; what was measured may differ as far as rounding depends on the number of threads."""
        return self._decisive() == other._decisive()

    def _decisive(self) -> tuple[Any, ...]:
        checks = [(check.name, check.passed) for check in self.self_check.items]
        batching = self.packing.longest, self.packing.shared_prefix, self.packing.apart
        absent = [(name, layer) for name, layer, _ in self.refused]
        return self.identity, checks, batching, self.points, absent, self.max_length, self.processor
