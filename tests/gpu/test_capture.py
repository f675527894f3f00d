"""What is read on a GPU is what is read on the CPU."""

import warnings

import numpy as np
import pytest
import torch

from mi_audit.config import DEFAULT_MODEL
from mi_audit.engine.batches import DEFAULT_BUDGET
from mi_audit.engine.budget import MOST, token_budget
from mi_audit.engine.capture import Site, capture
from mi_audit.model.load import load
from mi_audit.plan.places import At, Tokens
from mi_audit.suites.prompt import Prompt

pytestmark = pytest.mark.gpu

PROMPTS = [Prompt(f"p{number}", text=" ".join(f"word{number * step % 97}" for step in range(1, 3 + number % 11))) for number in range(64)]


def worst_difference(here, there, site):
    """Largest relative difference of a prompt's vector."""
    one, other = here.vectors(site), there.vectors(site)
    return float((np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)).max())


def both(gpu, cpu):
    sites = [Site(At("resid_post", layer=layer), Tokens(kind)) for layer in range(gpu.n_layers) for kind in ("last", "all")]
    here, there = capture(gpu, PROMPTS, sites), capture(cpu, PROMPTS, sites)
    return max(worst_difference(here, there, site) for site in sites)


def test_the_tiny_model_reads_alike(tiny_folder, tiny_on):
    gpu = tiny_on(tiny_folder, "cuda")
    assert gpu.device.type == "cuda"
    assert gpu.self_check.passed
    assert both(gpu, tiny_on(tiny_folder, "cpu")) <= 5e-5


@pytest.mark.real_model
def test_the_default_model_reads_alike():
    assert both(load(DEFAULT_MODEL, device="cuda", dtype="float32", progress=False), load(DEFAULT_MODEL, device="cpu", progress=False)) <= 5e-5


def test_a_batch_fits_the_memory_that_is_free(tiny_folder, tiny_on):
    budget = token_budget(tiny_on(tiny_folder, "cuda"))
    assert DEFAULT_BUDGET <= budget <= MOST
    assert budget & (budget - 1) == 0


class Batches:
    """Counts them."""

    def __init__(self):
        self.count = 0

    def start(self, prompts, tokens):
        pass

    def advance(self, prompts, tokens):
        self.count += 1

    def close(self):
        pass


def test_a_batch_waits_for_the_gpu_as_often_whatever_the_prompts_in_it(tiny_folder, tiny_on):
    model, site = tiny_on(tiny_folder, "cuda"), Site(At("resid_post", layer=2), Tokens("last"))
    seen = []
    for n in (8, 8, 64):  # the first pass may initialise kernels
        batches = Batches()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                capture(model, [Prompt(f"p{row}", text=f"{row:02d} is the number") for row in range(n)], [site], progress=batches, budget=MOST)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        seen.append((batches.count, sum("synchronizing CUDA operation" in str(each.message) for each in caught)))
    assert seen[2] == seen[1]
    assert seen[1][0] == 1
