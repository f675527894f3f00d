"""Several prompts in one row, and tokens that all prompts share passed once: what is exact of it on a model, and what may be tried. No torch.

Whether an architecture does as it is told is measured at load, never assumed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

LONGEST_ROW: Final = 256
"""Tokens of the longest packed row, shared ones included; rows of this length are checked."""

KNOWN_LAYERS: Final = frozenset({"full_attention", "sliding_attention"})
_WINDOWS: Final = ("sliding_window", "window_size", "attention_chunk_size", "local_attention_window")
"""Names that configurations give to the reach of local attention."""


@dataclass(frozen=True, slots=True)
class Packing:
    """What is exact on a model. `longest`: prompts of at most so many tokens may share a row, 0 if none; `shared_prefix`: whether the keys and values of a
    common beginning may be reused; `reason`: why prompts are padded instead, where they are; `apart`: lengths such that prompts longer than one of them may
    not be in a batch with prompts that are not."""

    longest: int = 0
    shared_prefix: bool = False
    reason: str = ""
    apart: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.longest:
            return f"padded: {self.reason}"
        return "packed, shared beginnings passed once" if self.shared_prefix else f"packed; beginnings are not shared: {self.reason}"


def longest_packable(config: Any) -> tuple[int, str]:
    """The longest prompt that may be packed on a model of this configuration, 0 with the reason if none.

    Up to the reach of its local attention a prompt sees all of itself, so that one mask serves every layer.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    if unknown := sorted(kinds - KNOWN_LAYERS):
        return 0, f"its layers of the type {unknown[0]} don't work by an attention mask"
    reach = reaches(config)
    if "sliding_attention" in kinds and not reach:
        return 0, "it has layers of the type sliding_attention, and its configuration does not tell how far they reach"
    context = getattr(config, "max_position_embeddings", None) or LONGEST_ROW
    return min([LONGEST_ROW, context, *reach, *lengths_apart(config)]), ""


def reaches(config: Any) -> tuple[int, ...]:
    """How many tokens back its local attention sees, as far as its configuration says so; none of a model without."""
    return tuple(value for name in _WINDOWS if isinstance(value := getattr(config, name, None), int) and value > 0)


def lengths_apart(config: Any) -> tuple[int, ...]:
    """Lengths beyond which the longest row of a batch changes the rotary embeddings of all its rows, ascending: LongRoPE's original context windows.

    Those of dynamic NTK change beyond `max_position_embeddings` alone, where no prompt is taken.
    """
    given = getattr(config, "rope_parameters", None)
    return tuple(sorted({int(each["original_max_position_embeddings"]) for each in _rotary(given) if each.get("rope_type") == "longrope"}))


def _rotary(given: Any) -> Iterator[Mapping[str, Any]]:
    """The rotary parameters of all layers, or those of each kind of layer."""
    if isinstance(given, Mapping):
        yield given
        yield from (each for each in given.values() if isinstance(each, Mapping))
