"""One forward pass of a batch, read at every site on the way, or of one prompt, read at every token; stopped after the deepest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from mi_audit.engine.batches import Batch, Ids
from mi_audit.engine.layout import Layout
from mi_audit.engine.listening import Listening
from mi_audit.engine.reduction import Activations, Chosen, Reduced, Selected, encoded, of_whole_prompts
from mi_audit.engine.site import Site
from mi_audit.errors import PromptError
from mi_audit.model.sinks import sink_mask, token_norms
from mi_audit.plan.places import At, Tokens

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel


@dataclass(frozen=True)
class Beginning:
    """Tokens that prompts share, passed once: their keys and values in every block, and their activations [shared, width] at each place."""

    past: DynamicCache | None = None
    acts: Mapping[At, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: "LoadedModel", listening: Listening, prefix: Ids, sites: Sequence[Site]) -> "Beginning":
        """Pass the tokens as far as the deepest site; for no tokens there is nothing to pass."""
        if not prefix:
            return cls()
        past = DynamicCache()
        acts: dict[At, Tensor] = {}
        called = {"input_ids": torch.tensor([prefix], device=model.device), "past_key_values": past, "use_cache": True}
        seen = model.hook_points.sinks_seen_at
        places = {place for site in sites for place in (site.at, seen(site.at))}
        listening.pass_through(places, called, lambda at, acts_1PD: acts.__setitem__(at, acts_1PD[0].to(model.device, copy=True)))
        return cls(past, acts)


def read_batch(
    model: "LoadedModel",
    listening: Listening,
    batch: Batch,
    prompts: Sequence[Ids],
    positions: Mapping[Tokens, Sequence[Sequence[int]]],
    sites: Sequence[Site],
    begun: Beginning,
) -> dict[Site, Reduced]:
    """Pass a batch's B prompts through the decoder (no LM head) as far as the deepest site.

    Args:
        model: the model.
        listening: listeners at the sites, and maybe others.
        batch: which of the prompts, and in which rows.
        prompts: token ids of every prompt.
        positions: for each selection the positions that it names in each prompt of the batch, in the order of `batch.prompts`.
        sites: what to read, one at least.
        begun: the batch's shared tokens, passed before as deep as the sites are.

    Returns:
        What was read at each site, in the order of `batch.prompts`.

    Raises:
        HookPointError: the pass did not come by a hook point.
        torch.OutOfMemoryError: the batch does not fit into the device's memory.
    """
    layout = Layout.of(batch, prompts, model.device)
    chosen = {tokens: Chosen.of(each, model.device) for tokens, each in positions.items()}
    by_place: dict[At, list[Site]] = {}
    for site in sites:
        by_place.setdefault(site.at, []).append(site)
    seen_at = {at: model.hook_points.sinks_seen_at(at) for at, here in by_place.items() if any(chosen[site.tokens].pooled for site in here)}
    sinks: dict[At, Tensor] = {}
    reduced: dict[Site, Reduced] = {}

    def hear(at: At, acts_RLD: Tensor) -> None:
        acts_RLD = acts_RLD.to(model.device)  # from the device of its block, where the model is on several
        acts = Activations(layout, begun.acts.get(at, acts_RLD[0, :0]), acts_RLD)
        if at in seen_at.values():
            sinks[at] = acts.sinks()
        all_here, sinks_BT = by_place.get(at, []), sinks[seen_at[at]] if at in seen_at else None
        selections = {tokens: Selected.of(acts, chosen[tokens], sinks_BT) for tokens in dict.fromkeys(site.tokens for site in all_here)}
        roots = dict.fromkeys(site.encoding.stem or site.encoding for site in all_here if site.encoding is not None)
        looking = {root: of_whole_prompts(acts, root.on(model.device), list(selections.values())) for root in roots if root.whole_prompt}
        for number, (tokens, selected) in enumerate(selections.items()):
            here = [site for site in all_here if site.tokens == tokens]
            encodings = [site.encoding for site in here if site.encoding is not None]
            made = dict(zip(encodings, encoded(selected.acts, encodings, {root: values[number] for root, values in looking.items()}), strict=True))
            for site in here:
                values = selected.acts if site.encoding is None else made[site.encoding]
                reduced[site] = selected.reduce(values, highest=site.encoding is not None and site.encoding.pooling == "max")

    listening.pass_through({*by_place, *seen_at.values()}, layout.arguments(model, begun.past), hear)
    return reduced


def read_alone(model: "LoadedModel", ids: tuple[int, ...], at: At) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Pass one prompt as far as a hook point: the activations float32 [L, width] of its L tokens, and which of them are attention sinks bool [L].

    Raises:
        HookPointError: the model has no such hook point, or the pass did not come by it.
        ModelError: the environment takes digits off float32.
        PromptError: it does not fit into the device's memory.
    """
    layout = Layout.of(Batch(((0,),), packed=False), [ids], model.device)
    seen_at, heard = model.hook_points.sinks_seen_at(at), dict[At, Tensor]()

    def hear(place: At, acts_1LD: Tensor) -> None:
        heard[place] = acts_1LD.clone()

    try:
        with Listening(model, [at]) as listening:
            listening.pass_through({at, seen_at}, layout.arguments(model, None), hear)
    except torch.OutOfMemoryError as error:
        raise PromptError(
            f"a prompt of {len(ids)} tokens does not fit into the memory of {model.device}; free some of it, or use --audit-device cpu"
        ) from error
    sinks_1L = sink_mask(token_norms(heard[seen_at]), torch.ones_like(heard[seen_at][..., 0]))
    return heard[at][0].to(torch.float32).cpu().numpy().copy(), sinks_1L[0].cpu().numpy().copy()
