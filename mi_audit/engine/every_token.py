"""The activation of every token of a few prompts at one hook point, where a reading keeps one vector per prompt. No torch before something has to pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mi_audit.engine.batches import Batch
from mi_audit.engine.cache import ActivationCache, batch_key
from mi_audit.engine.tokens import Encoded
from mi_audit.model.audited import AuditedModel
from mi_audit.plan.places import At


@dataclass(frozen=True, slots=True, eq=False)
class EveryToken:
    """A prompt of L tokens: `ids`, their `activations` float32 [L, width], and which of them are attention `sinks` bool [L] at this hook point."""

    ids: tuple[int, ...]
    activations: NDArray[np.float32]
    sinks: NDArray[np.bool_]


def every_token(model: AuditedModel, prompts: Sequence[Encoded], at: At, *, cache: ActivationCache | None = None) -> list[EveryToken]:
    """Pass prompts through the decoder, one by one, as far as a hook point and keep what every token has there, in the order of the prompts.

    Args:
        model: the model under audit.
        prompts: encoded for this model.
        at: the hook point, its layer absolute.
        cache: where the activations are looked up and kept.

    Raises:
        HookPointError: the model has no such hook point, or the pass did not come by it.
        PromptError: a prompt does not fit into the device's memory.
    """
    return [_found(model, prompt.ids, at, cache) if cache is not None else EveryToken(prompt.ids, *_read(model, prompt.ids, at)) for prompt in prompts]


def _found(model: AuditedModel, ids: tuple[int, ...], at: At, cache: ActivationCache) -> EveryToken:
    key, name = batch_key(Batch(((0,),), packed=False), [ids]), f"every token, {at}"
    known = cache.tensors(key)
    activations, sinks = known.get(f"{name}/activations"), known.get(f"{name}/sinks")
    width = model.hook_points.resolve(at.point, at.layer).width
    fits = activations is not None and activations.shape == (len(ids), width) and activations.dtype == np.float32
    if activations is None or sinks is None or not fits or sinks.shape != (len(ids),) or sinks.dtype != np.bool_:
        activations, sinks = _read(model, ids, at)
        cache.put(key, {f"{name}/activations": activations, f"{name}/sinks": sinks})
    return EveryToken(ids, activations, sinks)


def _read(model: AuditedModel, ids: tuple[int, ...], at: At) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    from mi_audit.engine.forward import read_alone

    return read_alone(model.loaded(), ids, at)
