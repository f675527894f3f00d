"""In bfloat16 on a GPU every reading carries its spread, measured against float32."""

import numpy as np
import pytest
import torch

from mi_audit.detectors.bench import Bench
from mi_audit.plan.detectors import probe
from mi_audit.plan.measurements import EstimateSpec, ReadSpec
from mi_audit.plan.places import at
from mi_audit.stats.claim import decide
from mi_audit.stats.verdict import Verdict
from mi_audit.suites.suite import suite

pytestmark = pytest.mark.gpu

ANSWERS = suite(
    [{"text": f"{row * 37 % 101} of {row}: {'yes' if row % 2 else 'no'}", "label": bool(row % 2), "group": f"g{row // 4}"} for row in range(320)],
    name="answers",
)
DETECTOR = probe("answers", method="difference_of_means", at=at("resid_post", depth=0.6), fit=ANSWERS["train"], threshold=0)
READING = ReadSpec(DETECTOR, ANSWERS["test"], controls=False)


def test_the_spread_is_measured_and_its_memory_given_back(tiny_folder, tiny_on):
    low = Bench(tiny_on(tiny_folder, "cuda", "bfloat16"), alpha=0.025, seed=0)
    low.read(READING)
    before = torch.cuda.memory_allocated()
    spread = low.spread(READING)
    assert spread.dtype == "bfloat16"
    assert 0 < spread.delta < np.ptp(low.read(READING).values)
    assert torch.cuda.memory_allocated() <= before + 2**20
    assert Bench(tiny_on(tiny_folder, "cuda"), alpha=0.025, seed=0).spread(READING) is None


def test_a_claim_between_the_bounds_is_left_to_float32(tiny_folder, tiny_on):
    low = Bench(tiny_on(tiny_folder, "cuda", "bfloat16"), alpha=0.025, seed=0)
    wide = low.estimate(EstimateSpec(READING, "mean"))
    assert wide.low < wide.unwidened.low <= wide.unwidened.high < wide.high
    claim = decide(wide, ">=", (wide.low + wide.unwidened.low) / 2)
    assert claim.verdict is Verdict.INCONCLUSIVE
    if not wide.undecided:
        assert "run with --audit-dtype float32 to decide" in claim.reasons[0]
