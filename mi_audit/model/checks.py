"""What the self-check at load found, as plain data. No torch."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """One identity that was tested at every layer: `worst` is the largest relative difference of any token, `detail` says where it was."""

    name: str
    passed: bool
    worst: float
    tolerance: float
    detail: str


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The checks made at load, and the hook points that can't be used: (name, layer, reason), whether absent or failed."""

    items: tuple[Check, ...]
    refused: tuple[tuple[str, int | None, str], ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed. A hook point that the architecture lacks does not count against it."""
        return all(item.passed for item in self.items)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"items": [asdict(item) for item in self.items], "refused": [list(entry) for entry in self.refused]}
