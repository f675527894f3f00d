"""Blocks of a decoder that a pass need not compute again: what the last of them gave in an earlier pass stands for all of them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from threading import Lock, local
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from mi_audit.errors import HookPointError
from mi_audit.model.slots import OutputSlot, find_output

Instead = Callable[[Any], Any]
"""From what calls the block as it is to what the block returns."""


@dataclass(frozen=True, eq=False)
class Kept:
    """What the last of some blocks gave for a prompt [1, T, width], and the form in which it gave it."""

    hidden: Tensor
    slot: OutputSlot
    output: Any

    def rows(self, number: int, start: int) -> Any:
        """The same for so many rows that hold the prompt's tokens from `start` on; their own, whatever is written to them."""
        return self.slot.put(self.output, self.hidden[:, start:].repeat(number, 1, 1))


class Fork:
    """The first blocks of a decoder, none or more of them, a context manager: inside of it passes may keep what the last one gives, and others skip them all.

    Their `forward` is replaced meanwhile, for all threads; passes that neither keep nor skip go through what stood there before.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks, self._ending = tuple(blocks), ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as added:
            for block in self._blocks:
                _replace(block)
                added.callback(_put_back, block)
            self._ending = added.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.close()

    @contextmanager
    def keeping(self) -> Iterator[list[Kept]]:
        """What the last block gives in this thread's pass inside of it, once the pass is done; nothing where there is no block.

        Raises:
            HookPointError: it gives no activation, in the pass.
        """
        kept: list[Kept] = []

        def keep(computed: Callable[[], Any]) -> Any:
            output = computed()
            slot = find_output(output)
            if slot is None:
                raise HookPointError(f"{type(self._blocks[-1]).__name__} returned {type(output).__name__} without an activation")
            kept.append(Kept(slot.get(output).clone(), slot, output))
            return output

        with _instead({self._blocks[-1]: keep} if self._blocks else {}):
            yield kept

    @contextmanager
    def skipping(self, output: Any) -> Iterator[None]:
        """In this thread's pass inside of it, none of the blocks is computed: each gives `output`."""
        with _instead({block: lambda _: output for block in self._blocks}):
            yield


class _Own(local):
    """What is a thread's own: what its passes do instead of computing a block."""

    instead: dict[nn.Module, Instead] | None = None


_own, _changing = _Own(), Lock()
_forks: Counter[nn.Module] = Counter()
_before: dict[nn.Module, Any] = {}


@contextmanager
def _instead(given: dict[nn.Module, Instead]) -> Iterator[None]:
    _own.instead = given
    try:
        yield
    finally:
        _own.instead = None


def _replace(block: nn.Module) -> None:
    with _changing:
        _forks[block] += 1
        if _forks[block] > 1:
            return
        forward = block.forward
        if "forward" in vars(block):
            _before[block] = forward  # such as accelerate's, which fetches the weights first

        @wraps(forward)
        def forked(*args: Any, **kwargs: Any) -> Any:
            instead = (_own.instead or {}).get(block)
            return forward(*args, **kwargs) if instead is None else instead(lambda: forward(*args, **kwargs))

        block.forward = forked


def _put_back(block: nn.Module) -> None:
    with _changing:
        _forks[block] -= 1
        if _forks[block]:
            return
        del _forks[block]
        if block in _before:
            block.forward = _before.pop(block)
        else:
            del block.forward
