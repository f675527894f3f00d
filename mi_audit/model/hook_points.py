"""Hook points by their standard (TransformerLens) names, resolved to modules of a Hugging Face model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from mi_audit.errors import HookPointError
from mi_audit.model.hook_map import HookMap, HookPoint, Key
from mi_audit.model.slots import InputSlot, OutputSlot
from mi_audit.model.structure import Decoder, Place, observe

_INSTEAD = {
    "resid_mid": "change attn_out of the same layer by the same amount",
    "ln2.hook_normalized": "change mlp.hook_in of the same layer, which is what the norm's gain makes of it",
}
"""What to change where a hook point can only be read."""

Callback = Callable[[Tensor], Tensor | None]
"""Receives an activation [batch, position, width]; what it returns, unless None, takes the activation's place."""


@dataclass(frozen=True, slots=True)
class Tap(HookPoint):
    """A hook point of a model that is loaded: the input or output of `module`, or what `through`, a module beside the model, makes of the input.

    `writable` is False where a replaced activation would not reach all that depends on it; errors name what to change instead.
    """

    module: nn.Module
    slot: InputSlot | OutputSlot
    writable: bool
    through: nn.Module | None = None

    @property
    def side(self) -> Literal["input", "output"]:
        """Whether the tap reads what goes into its module or what comes out."""
        return "input" if isinstance(self.slot, InputSlot) else "output"

    def listen(self, callback: Callback) -> RemovableHandle:
        """Call `callback` with the activation [batch, position, width] on every forward pass until the returned handle is removed."""
        slot, through = self.slot, self.through
        if isinstance(slot, InputSlot) and through is not None:
            given, made_by = slot, through

            def beside(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                self._hear(callback, made_by(given.get(args, kwargs)))

            return self.module.register_forward_hook(beside, with_kwargs=True)
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
            raise HookPointError(f"{self} can be read but not changed: {_INSTEAD[self.name]}")
        if changed.shape != acts_BLD.shape:
            raise HookPointError(f"{self} was given a replacement of shape {tuple(changed.shape)} for {tuple(acts_BLD.shape)}")
        return changed

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name} at layer {self.layer}"


class HookPoints(HookMap[Tap]):
    """The hook points of a loaded model, each with its tap."""

    def __init__(self, taps: Mapping[Key, Tap], refused: Mapping[Key, str], n_layers: int, decoder: Decoder) -> None:
        super().__init__(taps, refused, n_layers)
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
                taps[key] = Tap(*key, place.width, place.module, place.slot, place.writable, place.through)
        return cls(taps, refused, len(decoder.blocks), decoder)

    def without(self, refused: Mapping[Key, str]) -> "HookPoints":
        """The same hook points less those refused, each with its reason."""
        return HookPoints({key: tap for key, tap in self._taps.items() if key not in refused}, self._refused | dict(refused), self.n_layers, self.decoder)
