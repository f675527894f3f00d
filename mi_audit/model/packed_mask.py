"""How a model is told that several prompts stand in one row, some of them after tokens that all share.

A token of a packed row sees the shared tokens and the earlier ones of its own prompt, nothing else: block-diagonal attention, given to the model as a mask,
with positions counted in each prompt.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def packed_mask(segments_RL: Tensor, shared: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, [R, 1, L, shared + L]: 0 where a token may look, else the lowest number.

    `segments_RL` numbers the prompts of each row; places without a token (0) look at each other, so that no softmax is empty. On a CPU it is a `PackedMask`.
    """
    rows, length = segments_RL.shape
    own = segments_RL[:, :, None] == segments_RL[:, None, :]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segments_RL.device).tril()
    common = (segments_RL > 0)[:, :, None].expand(rows, length, shared)
    allowed = torch.cat([common, own & earlier], dim=-1)[:, None]
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segments_RL.device).masked_fill_(~allowed, torch.finfo(dtype).min)
    return mask if mask.device.type != "cpu" else PackedMask.of(mask, segments_RL, shared)


class PackedMask(Tensor):
    """A packed mask that knows its prompts: `scaled_dot_product_attention` computes each with what it sees and skips the rest, which on a CPU is most of the
    work. To everything else it is the tensor that it holds, so that a model whose attention is computed otherwise gets the same."""

    shared: int
    written: int
    """How often the tensor was written to when its prompts were told; a model that writes to it gets plain attention."""
    spans: tuple[tuple[int, int, int, Tensor | None], ...]
    """Of each prompt its row, its first place and the one after its last, and what is added to its scores where it follows shared tokens."""

    @classmethod
    def of(cls, mask: Tensor, segments_RL: Tensor, shared: int) -> "PackedMask":
        """The mask of prompts that stand one after the other in each row."""
        spans: list[tuple[int, int, int, Tensor | None]] = []
        for row, segments in enumerate(segments_RL.tolist()):
            for segment in range(1, max(segments) + 1):
                begin, end = segments.index(segment), segments.index(segment) + segments.count(segment)
                own = mask[row : row + 1, :, begin:end]
                seen = torch.cat([own[..., :shared], own[..., shared + begin : shared + end]], dim=-1) if shared else None
                spans.append((row, begin, end, seen))
        packed: PackedMask = mask.as_subclass(cls)
        packed.shared, packed.spans, packed.written = shared, tuple(spans), packed._version
        return packed

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """As torch has it; its attention, called with this mask, is computed prompt by prompt."""
        with torch._C.DisableTorchFunctionSubclass():
            if func is scaled_dot_product_attention and len(args) == 3 and kwargs and isinstance(mask := kwargs.get("attn_mask"), cls):
                rest = {name: value for name, value in kwargs.items() if name not in ("attn_mask", "is_causal")}
                if not kwargs.get("is_causal") and mask._is_of(*args):
                    return mask._attend(*args, rest)
            return func(*args, **(kwargs or {}))

    def _is_of(self, queries_RHLD: Tensor, keys_RHKD: Tensor, _: Tensor) -> bool:
        """Whether queries and keys stand as the mask has them: of a single token transformers has the heads that share keys where the tokens were."""
        if self.is_inference() or self._version != self.written:
            return False
        return (queries_RHLD.shape[0], queries_RHLD.shape[2], keys_RHKD.shape[2]) == (self.shape[0], self.shape[2], self.shape[3])

    def _attend(self, queries_RHLD: Tensor, keys_RHKD: Tensor, values_RHKD: Tensor, rest: dict[str, Any]) -> Tensor:
        rows, heads, length, _ = queries_RHLD.shape
        attended_RLHD = values_RHKD.new_zeros(rows, length, heads, values_RHKD.shape[-1])
        for row, begin, end, mask in self.spans:
            keys, values = self._own(keys_RHKD, row, begin, end), self._own(values_RHKD, row, begin, end)
            own = scaled_dot_product_attention(queries_RHLD[row : row + 1, :, begin:end], keys, values, attn_mask=mask, is_causal=mask is None, **rest)
            attended_RLHD[row : row + 1, begin:end] = own.transpose(1, 2)
        return attended_RLHD.transpose(1, 2)

    def _own(self, each_RHKD: Tensor, row: int, begin: int, end: int) -> Tensor:
        own = each_RHKD[row : row + 1, :, self.shared + begin : self.shared + end]
        return torch.cat([each_RHKD[row : row + 1, :, : self.shared], own], dim=2) if self.shared else own
