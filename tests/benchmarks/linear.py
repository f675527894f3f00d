"""Whether the time of a capture is linear in the number of prompts and its memory flat, from 128 prompts to 4096."""

from functools import partial

from mi_audit.model.loaded import LoadedModel
from tests.benchmarks.memory import CYCLE, OURS, peak_memory
from tests.benchmarks.options import Options
from tests.benchmarks.peers import middle, ours
from tests.benchmarks.prompts import Workload, cycled
from tests.benchmarks.table import Ratio, alternate, show

NUMBERS = (CYCLE, 17 * CYCLE, 32 * CYCLE)
FEW, MANY = 4 * CYCLE, 32 * CYCLE
MOST_SLOPE, MOST_GROWTH, ALLOWANCE = 1.1, 1.15, 64


def linear(given: Options, model: LoadedModel) -> list[Ratio]:
    """Time 128, 2176 and 4096 prompts of the same 128 lengths in turn; the peak memory of 512 and 4096, each in its own process."""
    works = {str(n): Workload.of(model, cycled(n, CYCLE)) for n in NUMBERS}
    layers = [middle(model)]
    ours(model, works[str(CYCLE)], layers)
    timed = alternate({name: partial(ours, model, work, layers) for name, work in works.items()}, given.repeats)
    few, half, all_of_them = (timed[str(n)].median for n in NUMBERS)
    lower, upper = (half - few) / (NUMBERS[1] - NUMBERS[0]), (all_of_them - half) / (NUMBERS[2] - NUMBERS[1])
    peaks = {n: peak_memory(given, OURS, cycled=n)["peak"] for n in (FEW, MANY)}
    rows = [[name, f"{each.median:.2f}", f"{int(name) / each.median:.1f}"] for name, each in timed.items()]
    show("Number of prompts, one middle layer", ["prompts", "s", "prompts/s"], rows)
    show("Peak memory", ["prompts", "MiB"], [[str(n), f"{peak:.0f}"] for n, peak in peaks.items()])
    allowed = MOST_GROWTH * peaks[FEW] + ALLOWANCE
    return [
        Ratio(f"slope of time, {NUMBERS[1]} to {NUMBERS[2]} prompts ÷ {NUMBERS[0]} to {NUMBERS[1]}", upper / lower, at_most=MOST_SLOPE),
        Ratio(f"memory at {MANY} prompts ÷ (1.15 × at {FEW} + 64 MiB)", peaks[MANY] / allowed, at_most=1.0),
    ]
