"""Where in a module's call the residual-sized tensor sits: which argument, or which part of what it returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mi_audit.errors import HookPointError


@dataclass(frozen=True, slots=True)
class InputSlot:
    """One argument of a call: a position, or a keyword (the Llama family passes attention its input by keyword)."""

    key: int | str

    def get(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The tensor there; HookPointError if the call has another form than the one that was observed."""
        value = (args[self.key] if len(args) > self.key else None) if isinstance(self.key, int) else kwargs.get(self.key)
        if not isinstance(value, Tensor):
            raise HookPointError(f"a module was called without the tensor expected at argument {self.key!r}: load the model again to resolve its hook points")
        return value

    def put(self, args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call with another tensor there."""
        if isinstance(self.key, int):
            return (*args[: self.key], value, *args[self.key + 1 :]), kwargs
        return args, {**kwargs, self.key: value}


@dataclass(frozen=True, slots=True)
class OutputSlot:
    """What a module returns: a bare tensor (transformers 5 blocks), or the first part of a tuple (attention, older blocks)."""

    in_tuple: bool

    def get(self, output: Any) -> Tensor:
        """The tensor there. A bare tensor is never indexed: that would silently take one item of the batch."""
        value = output[0] if self.in_tuple and isinstance(output, tuple) and output else output
        if not isinstance(value, Tensor) or isinstance(output, tuple) is not self.in_tuple:
            raise HookPointError(f"a module returned {type(output).__name__}, not the form observed at load: load the model again to resolve its hook points")
        return value

    def put(self, output: Any, value: Tensor) -> Any:
        """The same output with another tensor there."""
        return (value, *output[1:]) if self.in_tuple else value


@dataclass(frozen=True, slots=True)
class Output:
    """The activation that a module returns."""

    module: nn.Module
    slot: OutputSlot


def find_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> InputSlot | None:
    """The slot of the first floating-point tensor: by position, else `hidden_states`, else the first keyword."""
    for position, value in enumerate(args):
        if _is_activation(value):
            return InputSlot(position)
    for name in ("hidden_states", *kwargs):
        if _is_activation(kwargs.get(name)):
            return InputSlot(name)
    return None


def find_output(output: Any) -> OutputSlot | None:
    """The slot of the activation in a module's output, or None if it returns no activation first."""
    if _is_activation(output):
        return OutputSlot(in_tuple=False)
    if isinstance(output, tuple) and output and _is_activation(output[0]):
        return OutputSlot(in_tuple=True)
    return None


def _is_activation(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2 and not isinstance(value, torch.nn.Parameter)
