"""Which prompts pass through the model together."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

DEFAULT_BUDGET: Final = 2048
"""Padded tokens in a batch. On a CPU the speed is flat from 512 to 4096 and falls beyond; half of that keeps the memory of a batch small too."""


def plan_batches(lengths: Sequence[int], budget: int = DEFAULT_BUDGET) -> list[list[int]]:
    """Cut prompts, sorted by length, into batches of at most `budget` tokens with their padding; a longer prompt makes a batch of its own.

    The longest come first, so that a batch that does not fit into memory fails at once; equal lengths keep their order.

    Args:
        lengths: tokens of each prompt.
        budget: rows × longest row of a batch, at most.

    Returns:
        The batches, each a list of indices into `lengths`; every index occurs once.

    Raises:
        ValueError: a budget below 1.
    """
    if budget < 1:
        raise ValueError(f"a batch holds at least one token, not {budget}")
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if room == 0:
            batches.append([])
            room = max(1, budget // max(1, lengths[index]))
        batches[-1].append(index)
        room -= 1
    return batches


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both int64 [rows, longest row], padded on the right.

    In a causal model no token sees what is to its right, so the padding (token 0, masked) changes no value, and positions count from 0 in every row.
    """
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids.to(device), mask.to(device)
