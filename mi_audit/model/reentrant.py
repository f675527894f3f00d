"""May passes of a model run side by side, in threads? Not where one leaves something in a module that another would read."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def is_reentrant(decoder: nn.Module, prompts: Sequence[Tensor]) -> bool:
    """Whether passes of prompts of different lengths, token ids [L] each, leave attributes, buffers and weights of the modules as they were."""
    states = []
    for tokens in prompts:
        decoder(input_ids=tokens[None], use_cache=False)
        states.append(_state(decoder))
    return all(_same(states[0], state) for state in states[1:])


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
