"""How many tokens pass through a model together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from mi_audit.engine.batches import DEFAULT_BUDGET, ROW_TOKENS
from mi_audit.model.audited import AuditedModel

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

MOST: Final = 262_144
ROW: Final = 2048
"""Tokens of the row that the attention mask is reckoned for, or the context window where that is shorter."""
FEWEST: Final = 16
"""Batches that a CPU's cores share evenly enough."""
SAFETY: Final = 3.0
"""Memory is fragmented, kernels want workspace, and a block holds some tensors twice while it hands them on."""


def token_budget(model: AuditedModel, tokens: int) -> int:
    """Tokens of a batch, its padding among them: on a CPU `DEFAULT_BUDGET`, since more is no faster, or less where `tokens`, all there are, would make so few
    batches that cores are idle; on CUDA the power of two, from there to `MOST`, that fits.

    What fits is the memory that the weights leave over the bytes of a token: `SAFETY` × bytes of a number × (3 × intermediate size + 8 × hidden size + heads ×
    `ROW` + 2 × layers × key-value heads × their width). The terms are the widest activations that are alive at once: gate, up and their product; residual
    stream, its norm, queries, keys, values and outputs; the attention scores of a token with its row, for kernels that write them out; the keys and values
    that stay of every layer where beginnings are shared. Of a model on several GPUs the one with the least memory counts, less its share of the weights. What
    other programs take at the moment does not count, so that the same device always gives the same batches; where that is too much after all, batches are
    halved as they fail.
    """
    left = model.memory_left
    if left is None:
        return min(DEFAULT_BUDGET, max(ROW_TOKENS, tokens // FEWEST))
    return fitting(left, bytes_per_token(model.loaded()))


def bytes_per_token(model: "LoadedModel") -> float:
    """Memory that a token takes on its way through a block, in bytes, the margin included."""
    config, hidden = model.config, model.d_model
    heads = _largest(config, "num_attention_heads", 1)
    kept = 2 * model.n_layers * _largest(config, "num_key_value_heads", heads) * _largest(config, "head_dim", hidden // heads)
    row = min(model.max_length or ROW, ROW)
    return SAFETY * model.dtype.itemsize * (3 * _largest(config, "intermediate_size", 4 * hidden) + 8 * hidden + heads * row + kept)


def _largest(config: Any, name: str, otherwise: int) -> int:
    """A number of the configuration, the largest where it has one for each layer; `otherwise` where it has none."""
    given = getattr(config, name, None) or otherwise
    return int(max(given) if isinstance(given, Sequence) else given)


def fitting(free: int, each: float) -> int:
    """The largest power of two of tokens of `each` bytes in `free` bytes, within the bounds."""
    budget = DEFAULT_BUDGET
    while budget < MOST and 2 * budget * each <= free:
        budget *= 2
    return budget
