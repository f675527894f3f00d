"""May passes of a model run side by side, in threads? Not where one leaves something in a module that another would read."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mi_audit.model.structure import Decoder
from mi_audit.model.transformers_io import LOAD_ERRORS


@torch.no_grad()
def is_reentrant(decoder: Decoder, prompts: Sequence[Tensor]) -> bool:
    """Whether passes of two prompts of different lengths, token ids [L] each, leave attributes, buffers and weights of the modules as they were, and whether
    the numbers of both are, bit for bit, what they are alone where one is in the midst of the other: all of it as the middle block begins and as it ends, and a
    block, one of each kind, as each of its modules begins and ends."""
    states, alone = [], []
    for tokens in prompts:
        alone.append(_passed(decoder, tokens))
        states.append(_state(decoder.base))
    if not all(_same(states[0], state) for state in states[1:]):
        return False

    def amid(places: Iterable[nn.Module], other: Callable[[], Tensor]) -> bool:
        return _undisturbed(lambda: _passed(decoder, prompts[0]), alone[0], places, other)

    middle = decoder.blocks[len(decoder.blocks) // 2].module
    kinds = {tuple(type(module) for module in block.module.modules()): block.module for block in decoder.blocks}
    try:
        if not amid([middle], lambda: _passed(decoder, prompts[1])):
            return False
        return all(amid(list(block.modules())[1:], _again(decoder, block, prompts[1])) for block in kinds.values())
    except LOAD_ERRORS:  # what both leave in the modules does not even fit
        return False


def _undisturbed(one: Callable[[], Tensor], alone: Tensor, places: Iterable[nn.Module], other: Callable[[], Tensor]) -> bool:
    """Whether `one` gives what it does alone, and so does the other, which runs as each of the places begins and ends."""
    other_alone, same, within = other(), list[bool](), False

    def run(*_: object) -> None:
        nonlocal within
        if within:
            return
        within = True
        try:
            same.append(torch.equal(other(), other_alone))
        finally:
            within = False

    with ExitStack() as hooks:
        for place in places:
            hooks.callback(place.register_forward_pre_hook(run).remove)
            hooks.callback(place.register_forward_hook(run).remove)
        return torch.equal(one(), alone) and bool(same) and all(same)


def _again(decoder: Decoder, block: nn.Module, tokens: Tensor) -> Callable[[], Tensor]:
    """A call of the block with what it is called with as these tokens pass."""
    called: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = block.register_forward_pre_hook(lambda _, args, kwargs: called.append((args, kwargs)), with_kwargs=True)
    try:
        _passed(decoder, tokens)
    finally:
        handle.remove()
    (args, kwargs), *_ = called
    return lambda: _first(block(*args, **kwargs))


def _passed(decoder: Decoder, tokens: Tensor) -> Tensor:
    return _first(decoder.base(input_ids=tokens[None], use_cache=False))


def _first(output: Any) -> Tensor:
    first: Tensor = output if isinstance(output, Tensor) else output[0]
    return first


def _same(before: list[tuple[object, int]], after: list[tuple[object, int]]) -> bool:
    return len(before) == len(after) and all(one is other and written == now for (one, written), (other, now) in zip(before, after, strict=True))


def _state(decoder: nn.Module) -> list[tuple[object, int]]:
    """Every object that the modules hold, with how often it was written to where it is a tensor."""
    state: list[tuple[object, int]] = []
    for module in decoder.modules():
        for value in vars(module).values():
            held = [value, *(value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ())]
            state += [(each, each._version if isinstance(each, Tensor) and not each.is_inference() else 0) for each in held]
    return state
