"""Capture against plain Hugging Face, TransformerLens and nnsight: `python -m tests.benchmarks.capture`.

All read resid_post of the last token of the same prompts, at one middle layer and then at every layer, and every variant's vectors are held against those of
each prompt alone. Peers run twice: as their documentation shows, in batches of 16 in arrival order with their own early stop, and given length-sorted
batches of a token budget, as ours are without packing. They get token ids that are ready, while our time includes rendering and tokenising.

Prompts are real text of log-normal length (`--lengths mixed`), as collected prompts are. The shipped suites' own prompts (`--lengths shipped`) are more even,
so that batches in arrival order waste less: there the first ratios are smaller, and the targets were not set for them.

The floor is the arithmetic of the blocks that are needed over the speed of the model's own matrix products (`floor.py`). On a GPU a small model is bound by
launches, so the floor is judged on a CPU only.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import numpy as np

from mi_audit.model.load import load
from mi_audit.model.loaded import LoadedModel
from tests.benchmarks.floor import flops, peak
from tests.benchmarks.linear import linear
from tests.benchmarks.memory import OURS, peak_memory
from tests.benchmarks.options import Options, options, parser
from tests.benchmarks.peers import PEERS, Floats, arrival, by_length, middle, ours, read_all, reference, worst_difference
from tests.benchmarks.prompts import Workload, choose
from tests.benchmarks.table import Ratio, Timed, alternate, conclude, show

WARM_UP = 16
OWN, SORTED = "16 in arrival order", "length-sorted batches"
LEAST = {OWN: 3.0, SORTED: 1.3}
LEAST_ALL_LAYERS = 3.0
MOST_OVER_FLOOR = {"float32": 1.5, "bfloat16": 3.0}
LARGEST_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""Relative, of a vector. Half precision differs by as much from one batch to the next, so that there it only shows that the same thing was read."""

Batching = Callable[[Workload], Sequence[Sequence[int]]]
Variant = Callable[[Workload], Floats]
BATCHINGS: dict[str, Batching] = {SORTED: lambda work: by_length(work.lengths), OWN: lambda work: arrival(len(work))}
"""The closest to ours run right after it in each round, so that a machine that is slower for some minutes slows both."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    made = parser(__doc__, prompts=256)
    made.add_argument("--linear", action="store_true", help="also whether time is linear and memory flat up to 4096 prompts; takes long")
    given = options(made, arguments)
    model = load(given.model, device=given.device, dtype=given.dtype, progress=False)
    work = Workload.of(model, choose(given))
    print(f"{model!r}\n{work}")
    ratios = [*one_layer(given, model, work), *all_layers(given, model, work)]
    if given.linear:
        ratios += linear(given, model)
    facts = {"model": given.model, "dtype": model.identity.dtype, "device": model.identity.device, "prompts": len(work), "tokens": sum(work.lengths)}
    return conclude("capture", facts, ratios)


def one_layer(given: Options, model: LoadedModel, work: Workload) -> list[Ratio]:
    """Every variant at the middle layer; speed against peers and floor."""
    layer = middle(model)
    variants: dict[str, Variant] = {OURS: partial(ours, model, layers=[layer])}
    reads = {name: make(model, [layer]) for name, make in PEERS.items()}
    variants |= {f"{name}, {how}": partial(_by_batches, read, batching) for how, batching in BATCHINGS.items() for name, read in reads.items()}
    speeds: list[float] = []
    timed = _time(variants, work, given.repeats, lambda: speeds.append(peak(model, layer)))
    speed = median(speeds)
    floor = flops(model, layer, work.lengths) / speed
    print(f"floor: {floor:.2f} s, {flops(model, layer, work.lengths) / 1e12:.2f} TFLOP at {speed / 1e12:.3f} TFLOP/s of torch.mm, measured in every round")
    differences = _differences(timed, reference(model, work, [layer]))
    _table(f"resid_post at layer {layer}, last token", timed, differences, len(work), floor)
    judged = not given.quick
    ratios = [
        Ratio(f"{name}, {how} ÷ ours", timed[f"{name}, {how}"].median / timed[OURS].median, at_least=LEAST[how] if judged else None)
        for name in PEERS
        for how in BATCHINGS
    ]
    most = MOST_OVER_FLOOR.get(model.identity.dtype) if judged and model.device.type == "cpu" else None
    ratios.append(Ratio("ours ÷ floor", timed[OURS].median / floor, at_most=most))
    return [*ratios, _agreement("one layer", model, differences)]


def all_layers(given: Options, model: LoadedModel, work: Workload) -> list[Ratio]:
    """Ours and each peer's own batches at every layer; speed and memory against the fastest peer."""
    layers = list(range(model.n_layers))
    variants: dict[str, Variant] = {OURS: partial(ours, model, layers=layers)}
    variants |= {name: partial(_by_batches, make(model, layers), BATCHINGS[OWN]) for name, make in PEERS.items()}
    timed = _time(variants, work, given.repeats)
    differences = _differences(timed, reference(model, work, layers))
    _table(f"resid_post at all {len(layers)} layers, last token; peers with {OWN}", timed, differences, len(work))
    growth = {name: peak_memory(given, name)["growth"] for name in variants}
    show("Peak memory over the loaded model, all layers", ["variant", "MiB"], [[name, f"{mib:.0f}"] for name, mib in growth.items()])
    fastest = min(PEERS, key=lambda name: timed[name].median)
    speed = not given.quick
    return [
        Ratio(f"all layers: {fastest} (the fastest peer) ÷ ours", timed[fastest].median / timed[OURS].median, at_least=LEAST_ALL_LAYERS if speed else None),
        Ratio(f"all layers: memory, ours ÷ {fastest}", growth[OURS] / growth[fastest], at_most=1.0 if speed else None),
        _agreement("all layers", model, differences),
    ]


def _by_batches(read: Callable, batching: Batching, work: Workload) -> Floats:
    return read_all(read, work, batching(work))


def _time(variants: dict[str, Variant], work: Workload, repeats: int, before: Callable[[], object] = lambda: None) -> dict[str, Timed[Floats]]:
    for run in variants.values():
        run(work.head(WARM_UP))
    return alternate({name: partial(run, work) for name, run in variants.items()}, repeats, before)


def _differences(timed: dict[str, Timed[Floats]], expected: Floats) -> dict[str, float]:
    return {name: worst_difference(each.result, expected) for name, each in timed.items()}


def _agreement(what: str, model: LoadedModel, differences: dict[str, float]) -> Ratio:
    return Ratio(f"{what}: largest difference of any variant", float(np.max(list(differences.values()))), at_most=LARGEST_DIFFERENCE[model.identity.dtype])


def _table(title: str, timed: dict[str, Timed[Floats]], differences: dict[str, float], n: int, floor: float | None = None) -> None:
    header = ["variant", "s", "spread s", "prompts/s", "÷ ours", "÷ floor", "largest difference"]
    rows = [
        [
            name,
            f"{each.median:.2f}",
            f"{min(each.seconds):.2f}–{max(each.seconds):.2f}",
            f"{n / each.median:.1f}",
            f"{each.median / timed[OURS].median:.2f}",
            f"{each.median / floor:.2f}" if floor else "",
            f"{differences[name]:.1e}",
        ]
        for name, each in timed.items()
    ]
    show(title, header, rows)


if __name__ == "__main__":
    sys.exit(main())
