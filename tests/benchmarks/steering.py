"""A steering sweep against plain Hugging Face, TransformerLens and nnsight: `python -m tests.benchmarks.steering`.

A vector is added to resid_post of the middle layer in nine strengths, at every token of a prompt but its first, the attention sink. The effect is the
log-probability that the next token is one of a few answers. Ours reads the nine variants of each prompt as the engine does for an experiment; the others pass
each prompt once for each strength: in batches of 16 in arrival order, as their documentation shows, and Hugging Face in length-sorted batches too, of the token
budget that the capture benchmark gives its peers, and of a tighter one that wastes less on padding.

A pass takes as long whatever the strength, so peers pass `--peer-strengths` of the nine, spread evenly over them, and their seconds count as often as there are
more. The effects of a few prompts are held against those of each alone, and those of all prompts against ours.

Where only generated tokens are steered, no token but the prompt's last is touched, and ours takes the keys and values of the others from one pass. Its effects
are others, with a reference of their own; what a peer does takes as long.

Texts follow, as `generation.py` has them.

Beside the seconds stand those of the processor: where others use the machine too, their ratio is the steadier one.
"""

import json
import sys
from collections.abc import Sequence
from functools import partial
from time import process_time

import numpy as np

from mi_audit.model.load import load
from mi_audit.model.loaded import LoadedModel
from tests.benchmarks import generation
from tests.benchmarks.memory import measure, own_process
from tests.benchmarks.options import Options, options, parser
from tests.benchmarks.peers import BATCH
from tests.benchmarks.prompts import Workload, choose
from tests.benchmarks.steering_peers import Effects, Sweep, alone
from tests.benchmarks.steering_rows import ARRIVAL, LAST, OURS, SORTED, TIGHT, Row, row_of, sweep_of
from tests.benchmarks.table import Ratio, Timed, alternate, conclude, show

STRENGTHS = (-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0, 1.25)
LEAST_SORTED, LEAST_ARRIVAL = 2.8, 6.0
LARGEST_DIFFERENCE = 1e-4
"""Of a log-probability, in nats, in float32."""
WARM_UP = 4
HELD = 6
ROWS = (OURS, SORTED, TIGHT, LAST, *ARRIVAL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    made = parser(__doc__, prompts=64, repeats=1)
    made.add_argument("--peer-strengths", metavar="S", type=int, default=1, help=f"how many of the {len(STRENGTHS)} a peer passes; default 1")
    made.add_argument("--row", choices=ROWS, default="", help="measure the peak memory of this row, and nothing else")
    given = options(made, arguments)
    model = load(given.model, device=given.device, dtype="float32", progress=False)
    work = Workload.of(model, choose(given))
    sweep = sweep_of(model)
    if given.row:
        print(json.dumps(_memory(given, model, sweep, work)))
        return 0
    print(f"{model!r}\n{work}\n{len(STRENGTHS)} strengths at {sweep.at}")
    ratios = [*sweeps(given, model, sweep, work), *generation.compare(given, model)]
    facts = {"model": given.model, "device": model.identity.device, "prompts": len(work), "tokens": sum(work.lengths), "strengths": len(STRENGTHS)}
    return conclude("steering", facts, ratios)


def sweeps(given: Options, model: LoadedModel, sweep: Sweep, work: Workload) -> list[Ratio]:
    """Every row over all prompts: speed against peers, memory, and how far their effects are apart."""
    rows = {name: row_of(name, model, sweep) for name in ROWS}
    for row in rows.values():
        row(work.head(WARM_UP), STRENGTHS[:1])
    passed = {name: _strengths(name, given.peer_strengths) for name in ROWS}
    timed = alternate({name: partial(_with_processor, row, work, passed[name]) for name, row in rows.items()}, given.repeats)
    share = {name: len(STRENGTHS) / len(passed[name]) for name in ROWS}
    seconds = {name: each.median * share[name] for name, each in timed.items()}
    busy = {name: each.result[1] * share[name] for name, each in timed.items()}
    few = work.head(HELD)
    held = {name: alone(model, sweep, few, STRENGTHS, last=name == LAST) for name in (OURS, LAST)}
    differences = {name: _worst(timed, passed, name, held) for name in ROWS}
    header = ["row", "strengths", "s for nine", "prompts × strengths/s", "÷ ours", "processor s", "÷ ours", "largest difference"]
    cells = [
        [
            name,
            f"{len(passed[name])}",
            f"{seconds[name]:.2f}",
            f"{len(work) * len(STRENGTHS) / seconds[name]:.1f}",
            f"{seconds[name] / seconds[OURS]:.2f}",
            f"{busy[name]:.2f}",
            f"{busy[name] / busy[OURS]:.2f}",
            f"{differences[name]:.1e}",
        ]
        for name in ROWS
    ]
    show(f"{len(STRENGTHS)} strengths, {sweep.at}; medians of {given.repeats}", header, cells)
    growth = {name: own_process("tests.benchmarks.steering", [*given.command, f"--row={name}"])["growth"] for name in ROWS}
    show("Peak memory over the loaded model", ["row", "MiB"], [[name, f"{mib:.0f}"] for name, mib in growth.items()])
    judged = not given.quick and model.device.type == "cpu"
    least = {SORTED: LEAST_SORTED, TIGHT: None, **dict.fromkeys(ARRIVAL, LEAST_ARRIVAL)}
    return [
        *(Ratio(f"{name} ÷ ours", seconds[name] / seconds[OURS], at_least=target if judged else None) for name, target in least.items()),
        Ratio(f"{SORTED} ÷ {LAST}", seconds[SORTED] / seconds[LAST]),
        Ratio("largest difference of any row", max(differences.values()), at_most=LARGEST_DIFFERENCE),
    ]


def _with_processor(row: Row, work: Workload, strengths: Sequence[float]) -> tuple[Effects, float]:
    """Its effects, and the seconds that this process kept processors busy meanwhile."""
    began = process_time()
    return row(work, strengths), process_time() - began


def _strengths(name: str, few: int) -> tuple[float, ...]:
    """Those that a row passes: all, or a few spread evenly over them."""
    if name in (OURS, LAST):
        return STRENGTHS
    return tuple(STRENGTHS[index] for index in dict.fromkeys(np.linspace(0, len(STRENGTHS) - 1, few).round().astype(int).tolist()))


def _worst(timed: dict[str, Timed[tuple[Effects, float]]], passed: dict[str, tuple[float, ...]], name: str, held: dict[str, Effects]) -> float:
    """The largest difference of an effect of a row: from the reference on the prompts that were passed alone, and from ours on all; NaN if one is no number."""
    indices = [STRENGTHS.index(strength) for strength in passed[name]]
    found, expected = timed[name].result[0], held[LAST if name == LAST else OURS][indices]
    ours = found if name == LAST else timed[OURS].result[0][indices]
    return float(np.max([np.abs(found[:, : expected.shape[1]] - expected).max(), np.abs(found - ours).max()]))


def _memory(given: Options, model: LoadedModel, sweep: Sweep, work: Workload) -> dict[str, float]:
    """`peak` and `growth` of one row, in MiB, on a batch of the longest prompts, or on the longest alone where each is passed by itself.

    A peer passes one strength: each takes as much again.
    """
    row = row_of(given.row, model, sweep)
    strengths = _strengths(given.row, 1)
    row(work.head(WARM_UP), strengths)
    order = sorted(range(len(work)), key=lambda index: -work.lengths[index])[: 1 if given.row in (OURS, LAST) else BATCH]
    longest = Workload(tuple(work.prompts[index] for index in order), tuple(work.ids[index] for index in order))
    return measure(model.device, partial(row, longest, strengths))


if __name__ == "__main__":
    sys.exit(main())
