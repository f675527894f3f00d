import numpy as np
import pytest
import torch

from mi_audit.engine.batches import pad_right, plan_batches


def test_every_prompt_is_in_one_batch_within_the_budget_longest_first():
    lengths = np.random.default_rng(0).integers(1, 90, 300).tolist()
    batches = plan_batches(lengths, 256)
    assert sorted(index for batch in batches for index in batch) == list(range(300))
    assert max(len(batch) * max(lengths[index] for index in batch) for batch in batches) <= 256
    in_order = [(-lengths[index], index) for batch in batches for index in batch]
    assert in_order == sorted(in_order)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded <= 1.1 * sum(lengths)


def test_a_prompt_beyond_the_budget_is_a_batch_of_its_own():
    assert plan_batches([3, 50, 4], 8) == [[1], [2, 0]]
    assert plan_batches([], 8) == []
    with pytest.raises(ValueError, match="at least one token"):
        plan_batches([1], 0)


def test_padding_stands_on_the_right_and_is_masked():
    ids, mask = pad_right([(5, 6, 7), (8,)], torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
