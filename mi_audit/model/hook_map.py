"""Hook points by their standard (TransformerLens) names: which a model has, where, and why it lacks the others. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, TypeVar

from mi_audit.errors import HookPointError
from mi_audit.model.ranges import ranges
from mi_audit.plan.places import At

NAMES = ("embed", "resid_pre", "attn.hook_z", "attn_out", "resid_mid", "ln2.hook_normalized", "mlp.hook_in", "mlp.hook_post", "mlp_out", "resid_post")
"""Every hook point that exists, in the order in which a forward pass meets them."""

AFTER_A_NORM = ("ln2.hook_normalized", "mlp.hook_in")
"""Hook points at which all tokens are about as long, since a norm stands before them."""

Key = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class HookPoint:
    """A hook point at a layer, None for `embed`: `width` numbers per token. `order` sorts them as a forward pass comes by."""

    name: str
    layer: int | None
    width: int

    @property
    def block(self) -> int:
        """Index of the decoder block whose forward pass comes by; -1 for the embedding, before all blocks."""
        return -1 if self.layer is None else self.layer

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: block, then position within it. The hook point with the largest order is the deepest one."""
        return self.block, NAMES.index(self.name)


H = TypeVar("H", bound=HookPoint, covariant=True)


class HookMap(Generic[H]):
    """The hook points of one model: `resolve` gives what stands for one, or says why there is none and what there is instead."""

    def __init__(self, taps: Mapping[Key, H], refused: Mapping[Key, str], n_layers: int) -> None:
        self._taps = dict(taps)
        self._refused = dict(refused)
        self.n_layers = n_layers

    @property
    def names(self) -> tuple[str, ...]:
        """Names that resolve at one layer at least, in the order of a forward pass."""
        return tuple(name for name in NAMES if any(key[0] == name for key in self._taps))

    @property
    def refused(self) -> tuple[tuple[str, int | None, str], ...]:
        """Hook points that can't be used: (name, layer, reason), in the order of a forward pass."""
        ordered = sorted(self._refused.items(), key=lambda item: (NAMES.index(item[0][0]), -1 if item[0][1] is None else item[0][1]))
        return tuple((name, layer, reason) for (name, layer), reason in ordered)

    @property
    def taps(self) -> tuple[H, ...]:
        """Every usable hook point, as a forward pass meets them."""
        return tuple(sorted(self._taps.values(), key=attrgetter("order")))

    def available(self) -> list[tuple[str, tuple[int | None, ...], int]]:
        """(name, layers, width) of what can be used; `embed` has the one layer None. One entry per width where layers differ."""
        grouped: dict[tuple[str, int], list[int | None]] = {}
        for tap in (tap for name in NAMES for tap in self.taps if tap.name == name):
            grouped.setdefault((tap.name, tap.width), []).append(tap.layer)
        return [(name, tuple(layers), width) for (name, width), layers in grouped.items()]

    def resolve(self, name: str, layer: int | None = None) -> H:
        """What stands for a standard name and a layer index (None for `embed` only).

        Raises HookPointError for an unknown name, a layer out of range, or a hook point that this architecture lacks or that failed its self-check.
        """
        if name not in NAMES:
            raise HookPointError(f"there is no hook point {name!r}; this model has: {self._summary()}")
        if name == "embed" and layer is not None:
            raise HookPointError("the hook point 'embed' has no layer: leave it out")
        if name != "embed" and (layer is None or not 0 <= layer < self.n_layers):
            raise HookPointError(f"{name} needs a layer from 0 to {self.n_layers - 1}, not {layer}")
        if (name, layer) in self._refused:
            where = name if layer is None else f"{name} at layer {layer}"
            raise HookPointError(f"{where} can't be used on this model: {self._refused[name, layer]}; it has: {self._summary()}")
        return self._taps[name, layer]

    def sinks_seen_at(self, at: At) -> At:
        """Where a token's norm tells whether it is an attention sink: at the hook point itself, its layer absolute; of one after a norm in the residual stream
        before it, and where that can't be read in what enters the block."""
        if at.point not in AFTER_A_NORM:
            return at
        return At("resid_mid" if ("resid_mid", at.layer) in self._taps else "resid_pre", layer=at.layer)

    def _summary(self) -> str:
        parts = [name if layers == (None,) else f"{name} at {ranges([layer for layer in layers if layer is not None])}" for name, layers, _ in self.available()]
        return "; ".join(parts) or "none"
