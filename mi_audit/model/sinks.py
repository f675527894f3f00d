"""Attention sinks: tokens whose activation is many times longer than the others' of the same prompt.

They carry no content (Xiao et al., arXiv 2309.17453; Sun et al., "Massive Activations", arXiv 2402.17762), and one of them decides any mean, maximum
or principal component that it enters. Which tokens they are follows from their norm, never from a token id.
"""

import torch
from torch import Tensor

SINK_RATIO = 4.0
"""A sink's norm is more than this many times the median norm of its prompt's tokens.

Measured on the residual stream after every layer, on text, code and chats: from layer 10 on SmolLM2's ordinary tokens stay below 2.0 and the sink has
5 to 190; from layer 1 on Gemma 3 270M's stay below 2.1 and the sink has 4.4 to 17 (fading to 2 in its last three layers, where it weighs no more than
others). In the first layers (2 to 8 of SmolLM2, 0 of Gemma) several tokens of a prompt, turn markers among them, are 4 to 13 times the median.
"""


def token_norms(acts_BLD: Tensor) -> Tensor:
    """Euclidean norm of each token's activation, [B, L], in float32 at least."""
    norms_BL: Tensor = torch.linalg.vector_norm(acts_BLD.to(torch.promote_types(acts_BLD.dtype, torch.float32)), dim=-1)
    return norms_BL


def sink_mask(norms_BL: Tensor, mask_BL: Tensor, *, ratio: float = SINK_RATIO) -> Tensor:
    """True [B, L] where a token is an attention sink: its norm (`token_norms`) is over `ratio` times the median of its own prompt's tokens.

    `mask_BL` is nonzero at real tokens; padding is never a sink and takes no part in the median (the lower one, for an even count), so the answer does
    not depend on how prompts were batched. A prompt of one or two tokens has no sinks: nothing tells which of them is the exception.
    """
    real_BL = mask_BL.bool()
    norms_BL = norms_BL.masked_fill(~real_BL, float("nan"))
    median_B1 = norms_BL.nanmedian(dim=-1, keepdim=True).values
    enough_B1 = real_BL.sum(dim=-1, keepdim=True) > 2
    return (norms_BL > ratio * median_B1) & real_BL & enough_B1
