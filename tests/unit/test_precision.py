"""A model in bfloat16: its readings carry their measured distance from float32, and no verdict contradicts the one in float32."""

import gc
import shutil
import weakref

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mi_audit.detectors import precision
from mi_audit.detectors.bench import Bench
from mi_audit.engine.capture import Site, capture
from mi_audit.errors import ModelError
from mi_audit.model import load as load_module
from mi_audit.model.load import in_float32, load
from mi_audit.plan.detectors import direction
from mi_audit.plan.measurements import EstimateSpec, ReadSpec
from mi_audit.plan.places import At, Tokens, at
from mi_audit.stats.claim import decide
from mi_audit.stats.verdict import Verdict
from mi_audit.suites.suite import suite

AT, SITE = at("resid_post", depth=0.6), Site(At("resid_post", layer=2), Tokens("last"))
MANY = suite([{"text": f"{row}: the same words follow whatever number"} for row in range(160)], name="many")
FEW = MANY.head(40)


@pytest.fixture(scope="module")
def exact(tiny_folder):
    return load(str(tiny_folder), dtype="float32", device="cpu", progress=False)


@pytest.fixture(scope="module")
def low(tiny_folder):
    return load(str(tiny_folder), dtype="bfloat16", device="cpu", progress=False)


@pytest.fixture(scope="module")
def flat(exact, low, tmp_path_factory):
    """A direction in which prompts hardly differ but bfloat16 and float32 do (Fisher's discriminant of the two): rounding decides what exceeds a threshold."""
    one, other = (capture(model, MANY.prompts, [SITE]).vectors(SITE).astype(np.float64) for model in (exact, low))
    found = np.linalg.solve(np.cov(one.T) + np.cov(other.T), other.mean(axis=0) - one.mean(axis=0))
    file = tmp_path_factory.mktemp("directions") / "flat.safetensors"
    save_file({"direction": found / np.linalg.norm(found), "centre": one.mean(axis=0)}, file)
    return file


def bench(model, seed=3):
    return Bench(model, alpha=0.025, seed=seed)


def read(file, threshold=None, of=MANY, name="flat"):
    return ReadSpec(direction(name, file, at=AT, threshold=threshold), of)


def scores(model, file, prompts):
    return bench(model).read(read(file, of=prompts)).values


def test_the_spread_is_that_of_the_checkpoint_in_float32_on_a_sample_of_the_prompts(low, exact, flat, monkeypatch):
    monkeypatch.setattr(precision, "SAMPLE", 64)
    differences = np.abs(scores(low, flat, MANY) - scores(exact, flat, MANY))
    one = bench(low)
    few, many = one.spread(read(flat, of=FEW)), one.spread(read(flat))
    assert (few.dtype, few.n, few.of, many.n, many.of) == ("bfloat16", len(FEW), len(FEW), 64, len(MANY))
    assert few.delta == pytest.approx(differences[: len(FEW)].max(), rel=1e-3)
    assert np.isclose(differences, many.delta, rtol=1e-3).any()
    assert many.delta >= np.quantile(differences, 0.9)
    assert bench(low).spread(read(flat)) == many
    assert len({bench(low, seed).spread(read(flat)).delta for seed in range(4)}) > 1
    assert bench(exact).spread(read(flat)) is None
    assert bench(exact).estimate(EstimateSpec(read(flat), "mean")).unwidened is None


def test_no_verdict_contradicts_float32(low, exact, flat):
    """Over thresholds that lie among the scores. Were they taken as exact, verdicts would contradict each other: the test sees what it looks for."""
    thresholds = np.quantile(scores(exact, flat, MANY), np.linspace(0.01, 0.99, 15)).tolist()
    thresholds += np.quantile(scores(low, flat, MANY), np.linspace(0.01, 0.99, 15)).tolist()
    specs = [EstimateSpec(read(flat, threshold, name=f"flat{number}"), "rate") for number, threshold in enumerate(thresholds)]
    in_low, in_float = bench(low), bench(exact)
    in_low.prepare(spec.reading for spec in specs)
    opposite, contradictions, unwidened, decided = {Verdict.PASS, Verdict.FAIL}, 0, 0, 0
    for spec in specs:
        wide, right = in_low.estimate(spec), in_float.estimate(spec)
        for share in np.linspace(0.05, 0.95, 19).tolist():
            for op in ("<=", ">="):
                here, there = decide(wide, op, share).verdict, decide(right, op, share).verdict
                contradictions += {here, there} == opposite
                decided += here in opposite
                bounds = wide.unwidened
                taken_as_exact = share >= bounds.high if op == "<=" else share <= bounds.low
                unwidened += taken_as_exact and there is Verdict.FAIL
    assert contradictions == 0
    assert unwidened > 0
    assert decided > 0


def test_the_float32_model_passes_once_for_all_planned_readings_and_is_let_go(low, flat, monkeypatch):
    made = []

    def noted(*arguments, **more):
        copy = in_float32(*arguments, **more)
        made.append(weakref.ref(copy.hf))
        return copy

    monkeypatch.setattr(load_module, "in_float32", noted)
    one, readings = bench(low), [read(flat), read(flat, 0.0, FEW, "other")]
    one.prepare(readings)
    gc.collect()
    assert [each() for each in made] == [None]
    for reading in readings:
        one.estimate(EstimateSpec(reading, "mean"))
    assert len(made) == 1


def test_a_checkpoint_that_changed_meanwhile_decides_nothing(tiny_folder, tmp_path, flat):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    low = load(str(folder), dtype="bfloat16", device="cpu", progress=False)
    one = bench(low)
    assert in_float32(low, progress=False).dtype == torch.float32
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\x80\x3f")
    for _ in range(2):
        with pytest.raises(ModelError, match="have changed since they were digested"):
            one.estimate(EstimateSpec(read(flat), "mean"))
