"""May blocks be skipped and tokens be left out of a model's passes? Rows that do so are held against the plain pass of the same tokens."""

from threading import Lock
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import torch

from mi_audit.engine.rectangle import LEAST_SHARED, Looked, Rectangle, start_of
from mi_audit.engine.sharing import shared
from mi_audit.errors import HookPointError
from mi_audit.model.loaded import coarsest

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

TOLERANCE: Final = 1e-5
"""Largest relative difference of a token's logits in float32; eight roundings in lower precision."""
TOKENS: Final = 16
ROWS: Final = 2


def why_whole(model: "LoadedModel") -> str:
    """Why variants of a prompt have to be passed from the first block and token on; empty where they need not. Measured once per model."""
    with _lock:
        if model not in _reasons:
            _reasons[model] = _measured(model)
        return _reasons[model]


@torch.inference_mode()
def _measured(model: "LoadedModel") -> str:
    length = min(TOKENS, model.max_length or TOKENS)
    ids = tuple((number * 7 + 11) % model.identity.vocabulary for number in range(length))
    start = start_of(model, length, LEAST_SHARED + 2)
    looked = Looked(tuple(range(start, length)), None)
    tolerance = max(TOLERANCE, 8 * torch.finfo(coarsest(model.hf)).eps)
    try:
        plain_KV = model.hf(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, start:].to(model.device).double()
        for below in sorted({1, model.n_layers // 2, model.n_layers}):
            with shared(model, (frozenset(), None, below)) as session:
                rows_RKV = Rectangle.of(model, session, ids, start, looked).passed(ROWS).double()
            off = float(((rows_RKV - plain_KV).norm(dim=-1) / plain_KV.norm(dim=-1)).max())
            if not off <= tolerance:
                return f"logits are off by {off:.2g} where {below} blocks are skipped (allowed {tolerance:.2g})"
    except (HookPointError, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        return f"{type(model.hf).__name__} can't be passed otherwise ({type(error).__name__}: {error})"
    return ""


_lock = Lock()
_reasons: "WeakKeyDictionary[LoadedModel, str]" = WeakKeyDictionary()
