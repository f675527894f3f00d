"""How a batch lies in tensors: what the model is called with, and where in its activations each prompt's tokens stand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from mi_audit.engine.batches import Batch, Ids
from mi_audit.model.packed_mask import packed_mask

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of tokens with, per prompt, where it stands.

    Attributes:
        ids: int64 [R, L], rows filled up on the right with token 0.
        segments: int64 [R, L], the number of the row's prompt that a token belongs to, from 1; 0 where nothing stands.
        positions: int64 [R, L], each token's place in its own prompt.
        shared: how many tokens all prompts begin with, which the rows leave out.
        index: int64 [B, T]: of each prompt's tokens, where they stand among the shared tokens followed by the flattened rows.
        real: bool [B, T], False beyond a prompt's end.
        packed: whether rows hold several prompts, or leave out shared tokens.
    """

    ids: Tensor
    segments: Tensor
    positions: Tensor
    shared: int
    index: Tensor
    real: Tensor
    packed: bool

    @classmethod
    def of(cls, batch: Batch, prompts: Sequence[Ids], device: torch.device) -> "Layout":
        """Lay out a batch of `prompts`, its B prompts in the order of `batch.prompts`."""
        shared = len(batch.prefix)
        width = max(sum(len(prompts[index]) - shared for index in row) for row in batch.rows)
        longest = max(len(prompts[index]) for index in batch.prompts)
        ids, segments, positions, where, real = [], [], [], [], []
        for number, row in enumerate(batch.rows):
            row_ids: list[int] = []
            row_segments: list[int] = []
            row_positions: list[int] = []
            for segment, index in enumerate(row, start=1):
                own = prompts[index][shared:]
                start = shared + number * width + len(row_ids)
                where.append([*range(shared), *range(start, start + len(own)), *[0] * (longest - shared - len(own))])
                real.append([True] * (shared + len(own)) + [False] * (longest - shared - len(own)))
                row_ids += own
                row_segments += [segment] * len(own)
                row_positions += range(shared, shared + len(own))
            left = width - len(row_ids)
            ids.append(row_ids + [0] * left)
            segments.append(row_segments + [0] * left)
            positions.append(row_positions + [0] * left)
        return cls(_to(ids, device), _to(segments, device), _to(positions, device), shared, _to(where, device), _to(real, device), batch.packed)

    def mask(self, positions: Sequence[Sequence[int]]) -> Tensor:
        """True [R, L] at those positions of each of the B prompts, such as `select` gives of their tokens.

        Raises:
            ValueError: another number of prompts, a position beyond a prompt's end, or one among the shared tokens, which stand in no row.
        """
        mask_N = torch.zeros(self.ids.numel(), dtype=torch.bool, device=self.ids.device)
        for where, real, chosen in zip(self.index.tolist(), self.real.tolist(), positions, strict=True):
            for position in chosen:
                if not self.shared <= position < sum(real):
                    raise ValueError(f"position {position} of a prompt of {sum(real)} tokens, the first {self.shared} of them shared, stands in no row")
                mask_N[where[position] - self.shared] = True
        return mask_N.reshape(self.ids.shape)

    def arguments(self, model: "LoadedModel", before: "DynamicCache | None") -> dict[str, Any]:
        """What the decoder is called with. `before` holds the keys and values of the shared tokens, for one row."""
        if not self.packed:
            return {"input_ids": self.ids, "attention_mask": (self.segments > 0).long(), "use_cache": False}
        mask = packed_mask(self.segments, self.shared, model.dtype)
        called: dict[str, Any] = {"input_ids": self.ids, "position_ids": self.positions, "attention_mask": mask, "use_cache": False}
        if before is not None:
            rows = self.ids.shape[0]
            called["past_key_values"] = DynamicCache([(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values, *_ in before])
        return called


def _to(rows: Any, device: torch.device) -> Tensor:
    """A tensor on the device; a pinned copy lets a transfer to a GPU run beside the computation."""
    tensor = torch.tensor(rows)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
