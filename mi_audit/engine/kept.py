"""Keys and values of rows that grow by a token at a time, without being copied for each."""

from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM: Final = 16
"""Columns that are added at once."""


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One block's keys and values [R, heads, K, d], the first columns of tensors with room for some more.

    All that was passed is kept, of blocks with a sliding window too: their mask looks back no further than the window.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add columns: all keys and values there are then."""
        assert self.keys is not None and self.values is not None
        before, after = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if self._room is None or self._room[0].shape[2] < after:
            self._room = _with_room(self.keys, after + ROOM), _with_room(self.values, after + ROOM)
        keys, values = self._room
        keys[:, :, before:after], values[:, :, before:after] = key_states, value_states
        self.keys, self.values = keys[:, :, :after], values[:, :, :after]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows alone."""
        super().batch_select_indices(indices)
        self._room = None


def roomy(blocks: list[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A cache of every block's keys and values."""
    cache = DynamicCache()
    cache.layers = [RoomyLayer(keys, values) for keys, values in blocks]
    return cache


def _with_room(kept: Tensor, columns: int) -> Tensor:
    room = torch.empty(*kept.shape[:2], columns, kept.shape[3], dtype=kept.dtype, device=kept.device)
    room[:, :, : kept.shape[2]] = kept
    return room
