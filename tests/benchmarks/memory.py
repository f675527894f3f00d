"""The peak memory of one variant, in a process of its own: `python -m tests.benchmarks.memory --variant NAME` prints one line of JSON, in MiB.

On a CPU this is the kernel's own high-water mark (VmHWM), set back once the model is loaded and a few prompts have passed, so that neither loading nor what a
library takes once counts; on a GPU it is what torch allocated there. `growth` is the peak over what was held before the first batch.
"""

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from mi_audit.model.load import load
from mi_audit.model.loaded import LoadedModel
from tests.benchmarks.options import Options, parser
from tests.benchmarks.peers import PEERS, arrival, middle, ours, read_all
from tests.benchmarks.prompts import Workload, choose, cycled

OURS = "ours"
CYCLE = 128
WARM_UP = 4


def peak_memory(given: Options, variant: str, *, cycled: int = 0) -> dict[str, float]:
    """`peak` and `growth` of a variant that reads every layer; with `cycled`, the middle layer of so many cycled prompts.

    Raises:
        RuntimeError: the process failed; the message holds its standard error.
    """
    return own_process("tests.benchmarks.memory", [*given.command, f"--variant={variant}", f"--cycled={cycled}"])


def own_process(module: str, arguments: Sequence[str]) -> dict[str, float]:
    """What a module prints last, a line of JSON, when it runs as a process of its own.

    Raises:
        RuntimeError: the process failed; the message holds its standard error.
    """
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{module} {' '.join(arguments)} could not be measured:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(device: torch.device, run: Callable[[], object]) -> dict[str, float]:
    """`peak` and `growth` of one call, in MiB."""
    before = reset(device)
    run()
    highest = peak(device)
    return {"peak": highest, "growth": highest - before}


def main() -> None:
    """Measure and print."""
    made = parser(__doc__, prompts=256)
    made.add_argument("--variant", choices=(OURS, *PEERS), required=True)
    made.add_argument("--cycled", type=int, default=0)
    arguments = made.parse_args()
    variant, n_cycled = arguments.variant, arguments.cycled
    del arguments.variant, arguments.cycled
    given = Options(**vars(arguments))
    model = load(given.model, device=given.device, dtype=given.dtype, progress=False)
    layers = [middle(model)] if n_cycled else list(range(model.n_layers))
    work = Workload.of(model, cycled(n_cycled, CYCLE) if n_cycled else choose(given))
    run = _runner(variant, model, layers)
    run(work.head(WARM_UP))
    print(json.dumps(measure(model.device, partial(run, work))))


def _runner(variant: str, model: LoadedModel, layers: list[int]) -> Callable[[Workload], object]:
    if variant == OURS:
        return partial(ours, model, layers=layers)
    read = PEERS[variant](model, layers)
    return lambda work: read_all(read, work, arrival(len(work)))


def reset(device: torch.device) -> float:
    """Give freed memory back and set the mark to what is held now, in MiB."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak(device)


def peak(device: torch.device) -> float:
    """The mark, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(status["VmHWM"].split()[0]) / 2**10


if __name__ == "__main__":
    main()
