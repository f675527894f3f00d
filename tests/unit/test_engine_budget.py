from types import SimpleNamespace

import pytest
import torch

from mi_audit.engine.batches import DEFAULT_BUDGET, ROW_TOKENS
from mi_audit.engine.budget import MOST, ROW, bytes_per_token, fitting, token_budget
from mi_audit.model.load import load
from tests.agreement.tiny_models import CONTEXT, HEAD_DIM, HEADS, LAYERS, NEURONS, WIDTH


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(str(tiny_folder), device="cpu", dtype="bfloat16", progress=False)


def test_a_cpu_takes_the_default(model):
    assert model.devices == {torch.device("cpu")}
    assert token_budget(model, 10**6) == DEFAULT_BUDGET
    assert [token_budget(model, tokens) for tokens in (100, 4800)] == [ROW_TOKENS, 300]


def test_the_bytes_of_a_token_follow_the_widest_tensors(model):
    assert bytes_per_token(model) == 3 * 2 * (3 * NEURONS + 8 * WIDTH + HEADS * CONTEXT + 2 * LAYERS * 2 * HEAD_DIM)


def test_what_a_configuration_leaves_out_or_says_for_each_layer_is_taken_at_its_most(model):
    """As Gemma 3n does with `intermediate_size`, and GPT-2 with the key-value heads."""
    given = {"num_attention_heads": [HEADS, 2 * HEADS], "intermediate_size": [NEURONS, 3 * NEURONS, NEURONS]}
    spoken = SimpleNamespace(config=SimpleNamespace(**given), d_model=WIDTH, n_layers=LAYERS, dtype=model.dtype, max_length=None)
    assert bytes_per_token(spoken) == 3 * 2 * (9 * NEURONS + 8 * WIDTH + 2 * HEADS * ROW + 2 * LAYERS * WIDTH)
    silent = SimpleNamespace(
        config=SimpleNamespace(num_attention_heads=HEADS, intermediate_size=None), d_model=WIDTH, n_layers=1, dtype=model.dtype, max_length=8
    )
    assert bytes_per_token(silent) == 3 * 2 * (12 * WIDTH + 8 * WIDTH + HEADS * 8 + 2 * WIDTH)


def test_memory_is_filled_by_a_power_of_two_within_bounds():
    for free in (0, 4096 * 100 - 1, 4096 * 100, 8192 * 100 - 1, 10**12):
        budget = fitting(free, 100)
        assert budget in {2**power for power in range(9, 19)}
        assert budget * 100 <= free or budget == DEFAULT_BUDGET
        assert 2 * budget * 100 > free or budget == MOST
