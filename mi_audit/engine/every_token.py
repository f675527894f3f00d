"""The activation of every token of a few prompts at one hook point, where a reading keeps one vector per prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mi_audit.engine.batches import pad_right, plan_batches
from mi_audit.engine.tokens import Encoded
from mi_audit.errors import HookPointError, PromptError
from mi_audit.model.sinks import sink_mask
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

SMALL_BUDGET: Final = 1024
"""Padded tokens in a batch: fewer than for a capture, since every token is kept until the batch is done."""


@dataclass(frozen=True, slots=True, eq=False)
class EveryToken:
    """A prompt of L tokens: `ids`, their `activations` float32 [L, width], and which of them are attention `sinks` bool [L] at this hook point."""

    ids: tuple[int, ...]
    activations: NDArray[np.float32]
    sinks: NDArray[np.bool_]


def every_token(model: "LoadedModel", prompts: Sequence[Encoded], at: At, *, budget: int = SMALL_BUDGET) -> list[EveryToken]:
    """Pass prompts through the decoder as far as a hook point and keep what every token has there, in the order of the prompts.

    Args:
        model: the model under audit.
        prompts: encoded for this model; right-padded together, which changes no value.
        at: the hook point, its layer absolute.
        budget: padded tokens in a batch, at most.

    Raises:
        HookPointError: the model has no such hook point, or the pass did not come by it.
        PromptError: a batch does not fit into the device's memory.
    """
    kept: dict[int, EveryToken] = {}
    for batch in plan_batches([len(prompt.ids) for prompt in prompts], budget):
        rows = [prompts[index].ids for index in batch]
        try:
            acts_BLD, sinks_BL = _read(model, rows, at)
        except torch.OutOfMemoryError as error:
            longest = max(len(row) for row in rows)
            raise PromptError(
                f"{len(rows)} prompts of up to {longest} tokens don't fit into the memory of {model.device}; free some of it, or use --audit-device cpu"
            ) from error
        for row, index in enumerate(batch):
            length = len(rows[row])
            kept[index] = EveryToken(rows[row], acts_BLD[row, :length].copy(), sinks_BL[row, :length].copy())
    return [kept[index] for index in range(len(prompts))]


def _read(model: "LoadedModel", rows: Sequence[Sequence[int]], at: At) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Activations [B, L, width] and sinks [B, L] of a padded batch; the listener is gone afterwards, also after an error."""
    ids_BL, mask_BL = pad_right(rows, model.device)
    heard: list[Tensor] = []

    def hear(acts_BLD: Tensor) -> None:
        heard.append(acts_BLD)
        raise _Heard

    with torch.inference_mode():
        listener = model.hook_points.resolve(at.point, at.layer).listen(hear)
        try:
            model.base(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False)
        except _Heard:
            (acts_BLD,) = heard
            return acts_BLD.to(torch.float32).cpu().numpy(), sink_mask(acts_BLD, mask_BL).cpu().numpy()
        finally:
            listener.remove()
    raise HookPointError(f"the forward pass did not come by {at}; load the model again to resolve its hook points")


class _Heard(Exception):  # noqa: N818 — no error: it ends a forward pass whose remaining blocks nobody reads
    """The hook point was read."""
