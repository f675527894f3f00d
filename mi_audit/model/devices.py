"""Where a model runs: on one device, or spread over all GPUs, each of which one process holds at a time."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

import torch
from filelock import FileLock
from torch import nn

from mi_audit.errors import MissingDependencyError, ModelError
from mi_audit.model.locks import Say, hold_all, hold_first
from mi_audit.model.ranges import ranges

BALANCED: Final = "balanced"
FILL: Final = 0.9
"""Share of a GPU's free memory that weights may take; the rest is for activations."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: what its lock is called, and how many bytes of it are free now."""

    name: str
    free: Callable[[], int]

    def takes(self, size: int) -> bool:
        """Whether weights of `size` bytes fit."""
        return size <= FILL * self.free()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model goes: all of it to `device`; or, `balanced`, over all GPUs and CPU memory. Its GPUs are held as long as something refers to `locks`."""

    device: torch.device
    balanced: bool = False
    locks: tuple[FileLock, ...] = ()


def gpus() -> tuple[Gpu, ...]:
    """The CUDA devices that this process sees, in their order; one lock stands for one physical device, whatever its index here."""
    return tuple(_gpu(index) for index in range(torch.cuda.device_count())) if torch.cuda.is_available() else ()


def choose_device(device: str) -> torch.device:
    """The torch device for a name, of the first GPU where several may serve.

    Raises:
        ModelError: the name is unknown, or the device is not there.
        MissingDependencyError: `balanced` without accelerate.
    """
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    if device == BALANCED:
        if not torch.cuda.is_available():
            raise ModelError("the device 'balanced' spreads a model over GPUs, and there is none here: give auto or cpu")
        need_accelerate()
        return torch.device("cuda:0")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"{device!r} is no device: give auto, cpu, cuda, cuda:1, mps or balanced") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count(), "mps": torch.backends.mps.is_available()}
    if not there.get(chosen.type, False):
        raise ModelError(f"the device {device!r} is not available here: give auto or cpu")
    return torch.device("cuda", chosen.index or 0) if chosen.type == "cuda" else chosen


def place(device: str, size: int, found: Sequence[Gpu], say: Say) -> Placement:
    """Decide where weights of `size` bytes go, and hold the GPUs for them; waits, saying so, while other processes hold them.

    With `auto` and several GPUs that is the first free one, or all of them where its memory does not suffice.

    Raises:
        ModelError: as `choose_device`; or the lock files can't be written.
        MissingDependencyError: the model has to be spread, and accelerate is absent.
    """
    chosen = choose_device(device)
    if chosen.type != "cuda":
        return Placement(chosen)
    if device == BALANCED:
        return _spread(found, say)
    candidates = list(range(len(found))) if device == "auto" else [chosen.index]
    first, lock = hold_first([found[index].name for index in candidates], say)
    index = candidates[first]
    if len(candidates) == 1 or found[index].takes(size):
        return Placement(torch.device("cuda", index), locks=(lock,))
    del lock
    return _spread(found, say)


def place_beside(placement: Placement, size: int, found: Sequence[Gpu]) -> Placement:
    """Where a second model of `size` bytes goes that is compared with one that is placed: the same GPU if it fits there, the CPU if not; spread like it."""
    if placement.balanced or (placement.device.type == "cuda" and found[placement.device.index].takes(size)):
        return placement
    return Placement(torch.device("cpu"))


def need_accelerate() -> None:
    """Raise MissingDependencyError unless accelerate is installed."""
    if find_spec("accelerate") is None:
        raise MissingDependencyError("spreading a model over several devices needs accelerate: pip install accelerate")


def reclaim() -> None:
    """Make the memory of a model that nothing refers to any more free for others."""
    gc.collect()  # the modules of a model and their hooks refer to each other in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def input_device(module: nn.Module) -> torch.device:
    """Where a module computes: where its weights are, or, if accelerate keeps them elsewhere between calls, where it brings them."""
    hook = getattr(module, "_hf_hook", None)
    devices = [getattr(each, "execution_device", None) for each in getattr(hook, "hooks", (hook,))]
    brought = [device for device in devices if device is not None]
    return _device(brought[-1]) if brought else next(module.parameters()).device


def described(placement: Placement, parts: Sequence[str | int | torch.device]) -> str:
    """The devices in words, "cuda:1" or "cuda:0-1 and cpu, balanced"; `parts` are where a balanced model's modules went, a number being a GPU."""
    if not placement.balanced:
        return str(placement.device)
    devices = {_device(part) for part in parts}
    indices = sorted(device.index or 0 for device in devices if device.type == "cuda")
    names = [f"cuda:{ranges(indices)}"] if indices else []
    names += sorted({device.type for device in devices if device.type != "cuda"})
    return f"{' and '.join(names)}, {BALANCED}"


def _spread(found: Sequence[Gpu], say: Say) -> Placement:
    need_accelerate()
    return Placement(torch.device("cuda:0"), balanced=True, locks=hold_all([gpu.name for gpu in found], say))


def _device(name: str | int | torch.device) -> torch.device:
    return torch.device("cuda", name) if isinstance(name, int) else torch.device(name)


def _gpu(index: int) -> Gpu:
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return Gpu(f"cuda-{index if uuid is None else uuid}", lambda: int(torch.cuda.mem_get_info(index)[0]))
