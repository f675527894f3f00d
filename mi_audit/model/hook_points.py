"""Hook points by their standard (TransformerLens) names, resolved to modules of a Hugging Face model, where activations are read and changed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from threading import local
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel

from mi_audit.errors import HookPointError
from mi_audit.model.hook_map import HookMap, HookPoint, Key
from mi_audit.model.norms import gain_and_bias
from mi_audit.model.slots import InputSlot, Output, OutputSlot
from mi_audit.model.structure import Decoder, Place, observe

Hear = Callable[[Tensor], None]
"""Receives an activation [batch, position, width]."""

Change = Callable[[Tensor], Tensor | None]
"""Receives an activation [batch, position, width], which it leaves as it is; what it returns, unless None, takes the activation's place."""


@dataclass(frozen=True, slots=True)
class Handle:
    """What takes hooks away again."""

    hooks: tuple[RemovableHandle, ...]

    def remove(self) -> None:
        """Take them away."""
        for hook in self.hooks:
            hook.remove()


@dataclass(frozen=True, slots=True)
class Tap(HookPoint):
    """A hook point of a model that is loaded: the input or output of `module`, or what `through`, a module beside the model, makes of the input.

    `past` is the output of the block, where the residual stream carries the activation there beside `module`; what changes has to reach both.
    """

    module: nn.Module
    slot: InputSlot | OutputSlot
    through: nn.Module | None = None
    past: Output | None = None
    _before_gain: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary, init=False, repr=False, compare=False)

    @property
    def side(self) -> Literal["input", "output"]:
        """Whether the tap reads what goes into its module or what comes out."""
        return "input" if isinstance(self.slot, InputSlot) else "output"

    def listen(self, hear: Hear) -> Handle:
        """Call `hear` with the activation [batch, position, width] on every forward pass until the returned handle is removed."""

        def only(acts_BLD: Tensor) -> None:
            given: object = hear(acts_BLD)  # type: ignore[func-returns-value]
            if given is not None:
                raise HookPointError(f"what listens at {self} changes nothing, but it returned {type(given).__name__}; use Tap.intervene")

        return Handle((self._hooked(only),))

    def intervene(self, change: Change) -> Handle:
        """Put what `change` makes of the activation in its place on every forward pass, until the returned handle is removed.

        All that the model makes of the activation is then made of the new one: at `resid_mid` both what the feed-forward reads and what the residual stream
        carries past it, which agree up to the rounding of the longer of the old and the new; at `ln2.hook_normalized` what the norm's gain and bias make of it.
        A token whose activation stays as it is is left alone to the last bit.

        Raises:
            HookPointError: the middle of a stream that is not known to be the sum of what the sub-layers add; in a pass, another shape than the activation's.
        """
        if self.name == "resid_mid" and self.past is None:
            raise HookPointError(f"{self} can be read but not changed: attn_out or mlp_out of the same layer failed its self-check; change resid_post")

        def changed(acts_BLD: Tensor) -> Tensor | None:
            new_BLD = change(acts_BLD)
            if new_BLD is not None and new_BLD.shape != acts_BLD.shape:
                raise HookPointError(f"{self} was given a replacement of shape {tuple(new_BLD.shape)} for {tuple(acts_BLD.shape)}")
            return new_BLD

        if self.past is None:
            return Handle((self._hooked(changed),))
        slot, owed = self.past.slot, _Owed()

        def here(acts_BLD: Tensor) -> Tensor | None:
            new_BLD = changed(acts_BLD)
            owed.difference = None if new_BLD is None else _precise(new_BLD) - _precise(acts_BLD)
            return new_BLD

        def there(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            difference, owed.difference = owed.difference, None
            if difference is None:
                return None
            acts_BLD = slot.get(output)
            return slot.put(output, (_precise(acts_BLD) + difference.to(acts_BLD.device)).to(acts_BLD.dtype))

        # before whatever else hooks the block's output, so that this is never met without the difference
        return Handle((self._hooked(here), self.past.module.register_forward_hook(there, prepend=True)))

    def _hooked(self, callback: Change) -> RemovableHandle:
        slot, through = self.slot, self.through
        if isinstance(slot, OutputSlot):
            coming_out = slot

            def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
                changed = callback(coming_out.get(output))
                return None if changed is None else coming_out.put(output, changed)

            return self.module.register_forward_hook(after)
        going_in = slot
        if through is None:

            def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
                changed = callback(going_in.get(args, kwargs))
                return None if changed is None else going_in.put(args, kwargs, changed)

            return self.module.register_forward_pre_hook(before, with_kwargs=True)
        pure = through

        def beside(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            # where it was changed before, the norm's input no longer tells what stands here
            known: Tensor | None = self._before_gain.get(output)  # type: ignore[no-untyped-call]
            acts_BLD = pure(going_in.get(args, kwargs)) if known is None else known
            changed = callback(acts_BLD)
            if changed is None:
                return None
            gain, bias = gain_and_bias(module, acts_BLD)
            made_BLD = (_precise(changed) * gain + bias).to(output.dtype)
            as_it_was_BL1 = (changed == acts_BLD).all(dim=-1, keepdim=True)
            put_BLD = torch.where(as_it_was_BL1, output, made_BLD)
            self._before_gain[put_BLD] = changed
            return put_BLD

        return self.module.register_forward_hook(beside, with_kwargs=True)

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name} at layer {self.layer}"


class _Owed(local):
    """What the residual stream of a thread's own pass is yet to be given, once the feed-forward has added to it."""

    difference: Tensor | None = None


def _precise(acts_BLD: Tensor) -> Tensor:
    """In float32 at least."""
    return acts_BLD.to(torch.promote_types(acts_BLD.dtype, torch.float32))


def _vouched(tap: Tap, taps: Mapping[Key, Tap]) -> Tap:
    """Without its way past the feed-forward, where the layer's sub-layers are not known to add up to what leaves the block."""
    return tap if tap.past is None or {("attn_out", tap.layer), ("mlp_out", tap.layer)} <= taps.keys() else replace(tap, past=None)


class HookPoints(HookMap[Tap]):
    """The hook points of a loaded model, each with its tap."""

    def __init__(self, taps: Mapping[Key, Tap], refused: Mapping[Key, str], n_layers: int, decoder: Decoder) -> None:
        super().__init__({key: _vouched(tap, taps) for key, tap in taps.items()}, refused, n_layers)
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
                taps[key] = Tap(*key, place.width, place.module, place.slot, place.through, place.past)
        return cls(taps, refused, len(decoder.blocks), decoder)

    def without(self, refused: Mapping[Key, str]) -> "HookPoints":
        """The same hook points less those refused, each with its reason."""
        return HookPoints({key: tap for key, tap in self._taps.items() if key not in refused}, self._refused | dict(refused), self.n_layers, self.decoder)
