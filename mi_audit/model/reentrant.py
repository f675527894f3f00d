"""May passes of a model run side by side, in threads? Not where one leaves something in a module that another would read."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mi_audit.model.structure import Decoder
from mi_audit.model.transformers_io import LOAD_ERRORS


@torch.no_grad()
def is_reentrant(decoder: Decoder, prompts: Sequence[Tensor]) -> bool:
    """Whether passes of two prompts of different lengths, token ids [L] each, leave attributes, buffers and weights of the modules as they were, and whether
    the numbers of both are, bit for bit, what they are alone where one passes while the other is in the middle of the blocks."""
    states, alone = [], []
    for tokens in prompts:
        alone.append(_passed(decoder, tokens))
        states.append(_state(decoder.base))
    if not all(_same(states[0], state) for state in states[1:]):
        return False
    nested: list[Tensor] = []

    def pass_other(*_: object) -> None:
        handle.remove()
        nested.append(_passed(decoder, prompts[1]))

    handle = decoder.blocks[len(decoder.blocks) // 2].module.register_forward_pre_hook(pass_other)
    try:
        outer = _passed(decoder, prompts[0])
    except LOAD_ERRORS:  # what both leave in the modules does not even fit
        return False
    finally:
        handle.remove()
    return bool(nested) and torch.equal(outer, alone[0]) and torch.equal(nested[0], alone[1])


def _passed(decoder: Decoder, tokens: Tensor) -> Tensor:
    output: Tensor = decoder.base(input_ids=tokens[None], use_cache=False)[0]
    return output


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
