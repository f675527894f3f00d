import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mi_audit.engine.batches import plan_batches
from mi_audit.engine.layout import Layout
from mi_audit.model.packed_mask import packed_mask
from mi_audit.model.packing import LONGEST_ROW, Packing

PADDED, PACKED, SHARING = Packing(reason="asked for"), Packing(LONGEST_ROW), Packing(LONGEST_ROW, shared_prefix=True)


def prompts(lengths, begin=()):
    rng = np.random.default_rng(0)
    return [(*begin, *rng.integers(5, 900, length).tolist()) for length in lengths]


def sizes(batch, ids):
    return [sum(len(ids[index]) - len(batch.prefix) for index in row) for row in batch.rows]


@pytest.mark.parametrize("packing", [PADDED, PACKED, SHARING])
def test_every_prompt_is_in_one_batch_within_the_budget(packing):
    ids = prompts(np.random.default_rng(0).integers(1, 90, 300), begin=tuple(range(1000, 1012))) + prompts([400, 3, 7, 300, 200, 140])
    batches = plan_batches(ids, packing, 1024)
    assert sorted(index for batch in batches for index in batch.prompts) == list(range(306))
    assert max(len(batch.rows) * (len(batch.prefix) + max(sizes(batch, ids))) for batch in batches) <= 1024
    assert [batch.tokens(ids) for batch in batches] == [len(batch.rows) * (len(batch.prefix) + max(sizes(batch, ids))) for batch in batches]
    assert batches == plan_batches(ids, packing, 1024)
    filled = sum(len(batch.rows) * max(sizes(batch, ids)) for batch in batches)
    assert filled <= 1.1 * sum(sum(sizes(batch, ids)) for batch in batches)
    for batch in batches:
        assert all(ids[index][: len(batch.prefix)] == batch.prefix for index in batch.prompts)
        assert batch.packed or all(len(row) == 1 for row in batch.rows)
        assert not batch.packed or len(batch.prefix) + max(sizes(batch, ids)) <= LONGEST_ROW
    assert {batch.prefix for batch in batches} == ({(), tuple(range(1000, 1012))} if packing is SHARING else {()})
    assert {index for batch in batches if not batch.packed for index in batch.prompts} == (set(range(306)) if packing is PADDED else {300, 303})


def test_a_prompt_keeps_a_token_of_its_own():
    ids = [tuple(range(20))] * 1 + [tuple(range(20 + extra)) for extra in range(1, 9)]
    (batch,) = plan_batches(ids, SHARING)
    assert batch.prefix == tuple(range(19))
    assert min(sizes(batch, ids)) >= 1


def test_a_prompt_beyond_the_budget_is_a_batch_of_its_own():
    ids = prompts([3, 50, 4])
    assert [batch.rows for batch in plan_batches(ids, PADDED, 8)] == [((1,),), ((2,), (0,))]
    assert plan_batches([], PADDED, 8) == []
    with pytest.raises(ValueError, match="at least one token"):
        plan_batches(ids, PADDED, 0)


def test_a_layout_knows_where_each_token_stands():
    ids = [(9, 9, 1, 2, 3), (9, 9, 4), (9, 9, 5, 6)]
    (batch,) = plan_batches([*ids * 3], Packing(LONGEST_ROW, shared_prefix=False))
    layout = Layout.of(batch, ids * 3, torch.device("cpu"))
    flat = layout.ids.flatten()
    for row, index in enumerate(batch.prompts):
        tokens = flat[layout.index[row][layout.real[row]] - layout.shared]
        assert tuple(tokens.tolist()) == (ids * 3)[index]


@pytest.mark.parametrize("shared", [0, 2])
def test_attention_prompt_by_prompt_is_attention_under_the_mask(shared):
    segments = torch.tensor([[1, 1, 1, 2, 3, 3, 0], [1, 2, 2, 2, 2, 2, 2]])
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, length, 8).double() for length in (7, shared + 7, shared + 7))
    mask = packed_mask(segments, shared, torch.float64)
    attended = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=0.7)
    torch.testing.assert_close(attended[:, :, :6], torch.softmax(0.7 * queries @ keys.mT + mask, dim=-1)[:, :, :6] @ values, rtol=1e-12, atol=1e-12)
    assert not attended[0, :, 6].any()  # nothing stands there, and nothing was computed


def test_a_mask_that_was_written_to_is_heeded():
    queries, keys, values = (torch.randn(1, 2, 3, 8) for _ in range(3))
    mask = packed_mask(torch.tensor([[1, 1, 1]]), 0, torch.float32)
    mask[..., 2, 0] = torch.finfo(torch.float32).min
    attended = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    torch.testing.assert_close(attended, scaled_dot_product_attention(queries, keys, values, attn_mask=mask.clone()))


def test_heads_that_share_keys_are_no_tokens():
    """Of a single token transformers has the query heads of each key in the dimension of the tokens."""
    queries, keys, values = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    mask = packed_mask(torch.tensor([[1]]), 4, torch.float32)
    attended = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    torch.testing.assert_close(attended, scaled_dot_product_attention(queries, keys, values))


def test_a_packed_token_sees_the_shared_tokens_and_its_own_prompt_so_far():
    seen = packed_mask(torch.tensor([[1, 1, 2, 0]]), 2, torch.float32)[0, 0] == 0
    assert seen.int().tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
