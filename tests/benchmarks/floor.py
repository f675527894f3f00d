"""The least time that a capture can take on this machine: the arithmetic of the blocks it needs, at the speed of its own matrix products alone."""

from time import perf_counter

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mi_audit.model.loaded import LoadedModel

TOKENS = (256, 512, 1024, 2048, 4096)
TRIES = 5


def flops(model: LoadedModel, deepest: int, lengths: list[int]) -> float:
    """Floating-point operations of blocks 0 to `deepest` of a dense decoder: 2 a token and weight of the linear maps, 4 L² d of attention a prompt and block.

    Padding, embedding, norms and the LM head count nothing; a beginning that prompts share counts for each of them.
    """
    linear = sum(weight.numel() for layer in range(deepest + 1) for weight in _maps(model, layer))
    config = model.config
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return 2.0 * linear * sum(lengths) + 4.0 * width * (deepest + 1) * sum(length**2 for length in lengths)


@torch.inference_mode()
def peak(model: LoadedModel, layer: int) -> float:
    """Operations per second of `torch.mm` with the weights of one block, at the best of several numbers of tokens."""
    weights = _maps(model, layer)
    best = 0.0
    for tokens in TOKENS:
        pairs = [(torch.randn(tokens, weight.shape[0], device=model.device).to(model.dtype), weight) for weight in weights]
        fastest = min(_seconds(pairs, model.device) for _ in range(TRIES))
        best = max(best, sum(2.0 * tokens * weight.numel() for weight in weights) / fastest)
    return best


def _maps(model: LoadedModel, layer: int) -> list[Tensor]:
    """The linear maps of a block, each [in, out]."""
    modules = model.hook_points.decoder.blocks[layer].module.modules()
    return [module.weight if isinstance(module, Conv1D) else module.weight.T for module in modules if isinstance(module, Conv1D | nn.Linear)]


def _seconds(pairs: list[tuple[Tensor, Tensor]], device: torch.device) -> float:
    _wait(device)
    began = perf_counter()
    for acts, weight in pairs:
        torch.mm(acts, weight)
    _wait(device)
    return perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
