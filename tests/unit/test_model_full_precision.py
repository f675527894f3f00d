"""Whatever a library in the process told torch, float32 is computed in full."""

import numpy as np
import pytest
import torch

from mi_audit.engine.capture import Site, capture
from mi_audit.errors import ModelError
from mi_audit.model.full_precision import OVERRIDE
from mi_audit.model.load import load
from mi_audit.plan.places import At, Tokens
from mi_audit.suites.prompt import Prompt

SITE = Site(At("resid_post", layer=3), Tokens("last"))
PROMPTS = [Prompt(f"p{number}", text=f"{number} of the words") for number in range(40)]


@pytest.fixture(autouse=True)
def settings_of_its_own():
    yield
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "ieee"


def coarse():
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True


def mixed():
    """Newer settings beside older ones: to read the older ones then is an error of torch."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.fp32_precision = "tf32"


@pytest.mark.parametrize("tell", [coarse, mixed])
def test_float32_is_computed_in_full_whatever_torch_was_told(tiny_folder, tell):
    tell()
    model = load(str(tiny_folder), device="cpu", progress=False)
    assert torch.get_float32_matmul_precision() == "highest"
    vectors = capture(model, PROMPTS, [SITE]).vectors(SITE)
    tell()
    again = capture(model, PROMPTS, [SITE]).vectors(SITE)
    np.testing.assert_array_equal(again, vectors)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cudnn.rnn.fp32_precision == "ieee"


def test_an_environment_that_takes_digits_off_float32_is_refused(tiny_folder, monkeypatch):
    model = load(str(tiny_folder), device="cpu", progress=False)
    monkeypatch.setenv(OVERRIDE, "1")
    with pytest.raises(ModelError, match=f"{OVERRIDE}=1 .* unset it"):
        load(str(tiny_folder), device="cpu", progress=False)
    with pytest.raises(ModelError, match="unset it"):
        capture(model, PROMPTS, [SITE])
