"""May passes of a model run side by side, in threads? Not where one leaves something that another would read."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Barrier, Semaphore, get_ident
from typing import Any, Final

import torch
from torch import Tensor

from mi_audit.errors import ModelError
from mi_audit.model.structure import Decoder

PATIENCE: Final = 20.0
"""Seconds that a pass waits for its turn, at most; where one waits for a lock that the other holds it would be for ever."""


def is_reentrant(decoder: Decoder, prompts: Sequence[Tensor]) -> bool:
    """Whether passes of two prompts of different lengths, token ids [L] each, may run side by side.

    They may where a pass leaves attributes, buffers and weights of the modules as they were and gives the same numbers each time, and where both give, bit for
    bit, what they give alone although they take turns: each goes on from the beginning or the end of a module to the next, so that it stands in every module
    while the other comes through.

    Raises:
        ModelError: the model, steady before, gives other numbers afterwards.
    """
    with ThreadPoolExecutor(2) as threads:
        states, alone = [], []
        for tokens in prompts:
            alone.append(threads.submit(_passed, decoder, tokens).result())
            states.append(_state(decoder))
        steady = all(_gives(threads.submit(_passed, decoder, tokens), expected) for tokens, expected in zip(prompts, alone, strict=True))
        if not steady or not all(_same(states[0], state) for state in states[1:]):
            return False
        turns = _Turns()
        with turns.at_modules_of(decoder):
            beside = [threads.submit(turns.taken, number, decoder, tokens) for number, tokens in enumerate(prompts)]
            same = [_gives(passing, expected) for passing, expected in zip(beside, alone, strict=True)]
        if not all(_gives(threads.submit(_passed, decoder, tokens), expected) for tokens, expected in zip(prompts, alone, strict=True)):
            raise ModelError(
                f"{type(decoder.base).__name__}: two passes side by side leave something behind that changes later ones, so no number of it could be trusted;"
                " a model of this kind can't be audited"
            )
    return all(same) and not turns.given_up


class _Turns:
    """Two passes in threads of their own, of which one goes on at a time, from each beginning or end of a module to its next."""

    def __init__(self) -> None:
        self.given_up = False
        self._there, self._turn = Barrier(2), (Semaphore(1), Semaphore(0))
        self._numbers: dict[int, int] = {}

    @contextmanager
    def at_modules_of(self, decoder: Decoder) -> Iterator[None]:
        with ExitStack() as hooks:
            for module in decoder.base.modules():
                hooks.callback(module.register_forward_pre_hook(self._step).remove)
                hooks.callback(module.register_forward_hook(self._step).remove)
            yield

    def taken(self, number: int, decoder: Decoder, tokens: Tensor) -> Tensor:
        """Pass the tokens as the first (0) or the second (1) of the two."""
        self._numbers[get_ident()] = number
        try:
            self._there.wait(PATIENCE)
            self._wait(number)
            return _passed(decoder, tokens)
        finally:
            del self._numbers[get_ident()]
            self._turn[1 - number].release()

    def _step(self, *_: object) -> None:
        number = self._numbers.get(get_ident())
        if number is not None and len(self._numbers) == 2 and not self.given_up:
            self._turn[1 - number].release()
            self._wait(number)

    def _wait(self, number: int) -> None:
        if not self._turn[number].acquire(timeout=PATIENCE):
            self.given_up = True


def _gives(passing: "Future[Tensor]", expected: Tensor) -> bool:
    """Whether a pass gives these numbers; what it finds in the modules may not even fit."""
    return passing.exception() is None and torch.equal(passing.result(), expected)


@torch.no_grad()
def _passed(decoder: Decoder, tokens: Tensor) -> Tensor:
    output: Any = decoder.base(input_ids=tokens[None], use_cache=False)
    first: Tensor = output if isinstance(output, Tensor) else output[0]
    return first


def _same(before: list[tuple[object, int]], after: list[tuple[object, int]]) -> bool:
    return len(before) == len(after) and all(one is other and written == now for (one, written), (other, now) in zip(before, after, strict=True))


def _state(decoder: Decoder) -> list[tuple[object, int]]:
    """Every object that the modules hold, with how often it was written to where it is a tensor."""
    state: list[tuple[object, int]] = []
    for module in decoder.base.modules():
        for value in vars(module).values():
            held = [value, *(value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ())]
            state += [(each, each._version if isinstance(each, Tensor) and not each.is_inference() else 0) for each in held]
    return state
