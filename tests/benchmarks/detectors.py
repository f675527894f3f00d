"""Sixteen detectors at sixteen layers sharing one forward pass, against a pass for each: `python -m tests.benchmarks.detectors`.

Both go the way of an audit: a `Bench` prepares the readings of directions at depths 1/16, 2/16 … 1 on one suite, and scores them. The separate ones are ours
too and stop at their own layer, so that nothing but sharing differs. Their scores must be equal.
"""

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import mi_audit as mi
from mi_audit.detectors.bench import Bench
from mi_audit.model.load import load
from mi_audit.model.loaded import LoadedModel
from mi_audit.plan.measurements import ReadSpec
from tests.benchmarks.options import options, parser
from tests.benchmarks.prompts import Workload, choose
from tests.benchmarks.table import Ratio, alternate, conclude, show

DETECTORS = 16
WARM_UP = 16
LEAST = 8.0
LARGEST_DIFFERENCE = 1e-6
"""Of a score, relative to the spread of its detector's scores: the same batches pass through the same blocks, whoever shares them."""

Scores = NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    given = options(parser(__doc__, prompts=256), arguments)
    model = load(given.model, device=given.device, dtype=given.dtype, progress=False)
    prompts = choose(given)
    work = Workload.of(model, prompts)
    print(f"{model!r}\n{work}")
    with tempfile.TemporaryDirectory() as folder:
        readings = _readings(model, Path(folder), mi.suite(prompts, name="benchmark"))
        few = _readings(model, Path(folder), mi.suite(prompts[:WARM_UP], name="warm-up"))
        shared(model, few)
        timed = alternate({"shared": partial(shared, model, readings), "separate": partial(separate, model, readings)}, given.repeats)
    rows = [[name, f"{each.median:.2f}", f"{min(each.seconds):.2f}–{max(each.seconds):.2f}"] for name, each in timed.items()]
    show(f"{DETECTORS} detectors at layers {', '.join(str(each.detector.at.layer) for each in readings)}", ["variant", "s", "spread s"], rows)
    one, other = timed["shared"].result, timed["separate"].result
    difference = float((np.abs(one - other).max(axis=1) / other.std(axis=1)).max())
    ratios = [
        Ratio("separate ÷ shared", timed["separate"].median / timed["shared"].median, at_least=None if given.quick else LEAST),
        Ratio("largest difference of a score", difference, at_most=LARGEST_DIFFERENCE),
    ]
    facts = {"model": given.model, "dtype": model.identity.dtype, "device": model.identity.device, "prompts": len(work), "tokens": sum(work.lengths)}
    return conclude("detectors", facts, ratios)


def shared(model: LoadedModel, readings: Sequence[ReadSpec]) -> Scores:
    """All readings on one bench: scores [detector, prompt]."""
    bench = Bench(model, alpha=0.025, seed=0)
    bench.prepare(readings)
    passed, n = bench.captured.prompts, len(readings[0].suite)
    if passed != n:
        raise RuntimeError(f"{passed} prompts passed through the model, not {n}: this is no measurement of forward passes")
    return np.stack([bench.read(reading).values for reading in readings])


def separate(model: LoadedModel, readings: Sequence[ReadSpec]) -> Scores:
    """A bench for each reading: scores [detector, prompt]."""
    return np.concatenate([shared(model, [reading]) for reading in readings])


def _readings(model: LoadedModel, folder: Path, suite: mi.Suite) -> list[ReadSpec]:
    """Random directions at evenly spaced depths, read on a suite."""
    file = folder / "direction.safetensors"
    save_file({"direction": np.random.default_rng(0).standard_normal(model.d_model).astype(np.float32)}, file)
    layers = [mi.at("resid_post", depth=number / DETECTORS).layer_in(model.n_layers) for number in range(1, DETECTORS + 1)]
    return [ReadSpec(mi.direction(f"at-{number}", file, at=mi.at("resid_post", layer=layer)), suite) for number, layer in enumerate(layers)]


if __name__ == "__main__":
    sys.exit(main())
