"""What a norm does besides its gain: TransformerLens's `hook_normalized` stands before it, the output of a Hugging Face norm after it.

A gain multiplies as it is (Llama, LayerNorm) or as 1 + γ (Gemma). Which it is follows from what the module does, not from what it is called.
"""

from collections import OrderedDict
from copy import copy

import torch
from torch import Tensor, nn

PROBE = 100.0
"""Size of the entries of a probe, +PROBE and −PROBE in turn: of mean 0 and so large that what a norm adds to the mean square does not show."""


@torch.no_grad()
def without_gain(norm: nn.Module, acts: Tensor) -> nn.Module | None:
    """A norm's double whose gain is 1 and whose bias is 0, where `acts` [..., width] are; None where the module does not multiply and add after normalising.

    It has parameters of its own, none of the norm's hooks, and needs none of its weights, which may be elsewhere until a pass comes by.
    """
    own = dict(norm.named_parameters())
    if not own.keys() <= {"weight", "bias"}:
        return None
    double = copy(norm)
    for placed_by_accelerate in ("forward", "_old_forward", "_hf_hook"):
        double.__dict__.pop(placed_by_accelerate, None)
    double._forward_hooks, double._forward_pre_hooks = OrderedDict(), OrderedDict()
    zeros = {name: nn.Parameter(torch.zeros(each.shape, dtype=each.dtype, device=acts.device), requires_grad=False) for name, each in own.items()}
    double._parameters = dict(zeros)
    given = _probe(acts)
    if "weight" in own and not double(given).any():
        zeros["weight"].fill_(1)
    return double if torch.allclose(double(given), given / PROBE, rtol=1e-2, atol=0) else None


@torch.no_grad()
def gain_and_bias(norm: nn.Module, acts: Tensor) -> tuple[Tensor, Tensor]:
    """What a norm of activations like these [..., width] multiplies with after normalising and what it adds then, [width] each.

    They are its response to a probe less that to its opposite, and the mean of both. Its hooks hear nothing of it: one of them may be asking.
    """
    given = _probe(acts)
    one, other = norm.forward(given), norm.forward(-given)
    return (one - other) / 2 * given.sign(), (one + other) / 2


def _probe(acts: Tensor) -> Tensor:
    signs = 1 - 2 * (torch.arange(acts.shape[-1], device=acts.device) % 2)
    return PROBE * signs.to(acts.dtype)
