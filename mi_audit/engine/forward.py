"""One forward pass of a batch, read at every site on the way and stopped after the deepest."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mi_audit.engine.batches import pad_right
from mi_audit.engine.reduction import Chosen, Reduced, reduce
from mi_audit.engine.site import Site
from mi_audit.errors import HookPointError
from mi_audit.model.sinks import sink_mask
from mi_audit.plan.places import At, Tokens

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel


def read_batch(
    model: "LoadedModel", rows: Sequence[Sequence[int]], positions: Mapping[Tokens, Sequence[Sequence[int]]], sites: Sequence[Site]
) -> dict[Site, Reduced]:
    """Pass B prompts through the decoder (no LM head) as far as the deepest site; the listeners are gone afterwards, also after an error.

    Args:
        model: the model.
        rows: token ids of each prompt.
        positions: for each selection the positions that it names in each prompt.
        sites: what to read, one at least.

    Raises:
        HookPointError: the model has no such hook point, or the pass did not come by it.
    """
    ids_BL, mask_BL = pad_right(rows, model.device)
    real_BL = mask_BL.bool()
    chosen = {tokens: Chosen.of(each, model.device) for tokens, each in positions.items()}
    by_place: dict[At, list[Site]] = {}
    for site in sites:
        by_place.setdefault(site.at, []).append(site)
    reduced: dict[Site, Reduced] = {}
    waiting = set(by_place)

    def listener(at: At) -> Callable[[Tensor], None]:
        def hear(acts_BLD: Tensor) -> None:
            here = by_place[at]
            pooled = any(chosen[site.tokens].pooled for site in here)
            sinks_BL = sink_mask(acts_BLD, real_BL) if pooled else torch.zeros_like(real_BL)
            reduced.update({site: reduce(acts_BLD, chosen[site.tokens], sinks_BL) for site in here})
            waiting.discard(at)
            if not waiting:
                raise _DeepestRead

        return hear

    with ExitStack() as listening, torch.inference_mode():
        for at in by_place:
            listening.callback(model.hook_points.resolve(at.point, at.layer).listen(listener(at)).remove)
        try:
            model.base(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False)
        except _DeepestRead:
            return reduced
    raise HookPointError(
        f"the forward pass did not come by {', '.join(str(at) for at in by_place if at in waiting)}; load the model again to resolve its hook points"
    )


class _DeepestRead(Exception):  # noqa: N818 — no error: it ends a forward pass whose remaining blocks nobody reads
    """All sites of this pass are read."""
