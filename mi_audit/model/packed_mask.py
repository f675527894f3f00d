"""How a model is told that several prompts stand in one row, some of them after tokens that all share.

A token of a packed row sees the shared tokens and the earlier ones of its own prompt, nothing else: block-diagonal attention, given to the model as a mask,
with positions counted in each prompt.
"""

import torch
from torch import Tensor


def packed_mask(segments_RL: Tensor, shared: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, [R, 1, L, shared + L]: 0 where a token may look, else the lowest number.

    `segments_RL` numbers the prompts of each row; places without a token (0) look at each other, so that no softmax is empty.
    """
    rows, length = segments_RL.shape
    own = segments_RL[:, :, None] == segments_RL[:, None, :]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segments_RL.device).tril()
    common = (segments_RL > 0)[:, :, None].expand(rows, length, shared)
    allowed = torch.cat([common, own & earlier], dim=-1)[:, None]
    return torch.zeros(allowed.shape, dtype=dtype, device=segments_RL.device).masked_fill_(~allowed, torch.finfo(dtype).min)
