"""Hook points by their standard (TransformerLens) names, resolved to modules of a Hugging Face model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from mi_audit.errors import HookPointError
from mi_audit.model.ranges import ranges
from mi_audit.model.slots import InputSlot, OutputSlot
from mi_audit.model.structure import Decoder, Place, observe

NAMES = ("embed", "resid_pre", "attn.hook_z", "attn_out", "resid_mid", "mlp.hook_post", "mlp_out", "resid_post")
"""Every hook point that exists, in the order in which a forward pass meets them."""

Callback = Callable[[Tensor], Tensor | None]
"""Receives an activation [batch, position, width]; what it returns, unless None, takes the activation's place."""

Key = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class Tap:
    """One place of the residual stream: the input or output of `module`, `width` numbers per token.

    `layer` is None for `embed`. `order` sorts taps as a forward pass meets them. `writable` is False where a replaced activation would not reach
    the whole stream (`resid_mid`: change `attn_out` of the same layer by the same amount instead).
    """

    name: str
    layer: int | None
    module: nn.Module
    slot: InputSlot | OutputSlot
    width: int
    writable: bool

    @property
    def side(self) -> Literal["input", "output"]:
        """Whether the tap reads what goes into its module or what comes out."""
        return "input" if isinstance(self.slot, InputSlot) else "output"

    @property
    def block(self) -> int:
        """Index of the decoder block whose forward pass fires the tap; -1 for the embedding, before all blocks."""
        return -1 if self.layer is None else self.layer

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: block, then position within it. The tap with the largest order is the deepest one."""
        return self.block, NAMES.index(self.name)

    def listen(self, callback: Callback) -> RemovableHandle:
        """Call `callback` with the activation [batch, position, width] on every forward pass until the returned handle is removed."""
        slot = self.slot
        if isinstance(slot, InputSlot):

            def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
                changed = self._hear(callback, slot.get(args, kwargs))
                return None if changed is None else slot.put(args, kwargs, changed)

            return self.module.register_forward_pre_hook(before, with_kwargs=True)

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            changed = self._hear(callback, slot.get(output))
            return None if changed is None else slot.put(output, changed)

        return self.module.register_forward_hook(after)

    def _hear(self, callback: Callback, acts_BLD: Tensor) -> Tensor | None:
        changed = callback(acts_BLD)
        if changed is None:
            return None
        if not self.writable:
            raise HookPointError(f"{self} can be read but not changed: change attn_out of the same layer by the same amount")
        if changed.shape != acts_BLD.shape:
            raise HookPointError(f"{self} was given a replacement of shape {tuple(changed.shape)} for {tuple(acts_BLD.shape)}")
        return changed

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name} at layer {self.layer}"


class HookPoints:
    """The hook points of one model: `resolve` gives a tap, or says why there is none and what there is instead."""

    def __init__(self, taps: Mapping[Key, Tap], refused: Mapping[Key, str], n_layers: int, decoder: Decoder):
        self._taps = dict(taps)
        self._refused = dict(refused)
        self.n_layers = n_layers
        self.decoder = decoder

    @classmethod
    def of(cls, hf: PreTrainedModel) -> "HookPoints":
        """Resolve the hook points of a model in evaluation mode (one forward pass over a few tokens). HookPointError if its blocks can't be told."""
        decoder = observe(hf)
        places: dict[Key, Place] = {("embed", None): decoder.embed}
        for layer, block in enumerate(decoder.blocks):
            places |= {(name, layer): place for name, place in block.places.items()}
        taps: dict[Key, Tap] = {}
        refused: dict[Key, str] = {}
        for key, place in places.items():
            if place.module is None or place.slot is None:
                refused[key] = place.why_not
            else:
                taps[key] = Tap(*key, place.module, place.slot, place.width, place.writable)
        return cls(taps, refused, len(decoder.blocks), decoder)

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
    def taps(self) -> tuple[Tap, ...]:
        """Every usable tap, as a forward pass meets them."""
        return tuple(sorted(self._taps.values(), key=lambda tap: tap.order))

    def available(self) -> list[tuple[str, tuple[int | None, ...], int]]:
        """(name, layers, width) of what can be used; `embed` has the one layer None. One entry per width where layers differ."""
        grouped: dict[tuple[str, int], list[int | None]] = {}
        for tap in sorted(self._taps.values(), key=lambda tap: (NAMES.index(tap.name), tap.block)):
            grouped.setdefault((tap.name, tap.width), []).append(tap.layer)
        return [(name, tuple(layers), width) for (name, width), layers in grouped.items()]

    def resolve(self, name: str, layer: int | None = None) -> Tap:
        """The tap for a standard name and a layer index (None for `embed` only).

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

    def without(self, refused: Mapping[Key, str]) -> "HookPoints":
        """The same hook points less those refused, each with its reason."""
        return HookPoints({key: tap for key, tap in self._taps.items() if key not in refused}, self._refused | dict(refused), self.n_layers, self.decoder)

    def _summary(self) -> str:
        parts = [name if layers == (None,) else f"{name} at {ranges([layer for layer in layers if layer is not None])}" for name, layers, _ in self.available()]
        return "; ".join(parts) or "none"
