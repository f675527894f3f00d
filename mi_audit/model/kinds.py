"""Kinds of modules, told by what they are made of where that is enough."""

from torch import nn
from transformers.pytorch_utils import Conv1D


def is_linear(module: nn.Module) -> bool:
    """A linear map: its weight is a matrix and it is no norm, embedding or container (covers Conv1D and quantised linears)."""
    return isinstance(module, (nn.Linear, Conv1D)) or ("linear" in type(module).__name__.lower() and not any(module.children()))


def is_norm(module: nn.Module) -> bool:
    """A normalisation."""
    return "norm" in type(module).__name__.lower() and not any(module.children())


def has_experts(module: nn.Module) -> bool:
    """A mixture of experts."""
    return any("expert" in path.lower() for path, _ in module.named_modules())
