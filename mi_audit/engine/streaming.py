"""The activation of every token at a hook point, of more prompts than memory holds: batch by batch, in an order that follows from the prompts alone."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mi_audit.engine.batches import Batch, Ids, plan_batches
from mi_audit.engine.budget import token_budget
from mi_audit.engine.every_token import EveryToken
from mi_audit.engine.layout import Layout
from mi_audit.engine.listening import Listening
from mi_audit.engine.progress import Hearer, reporting
from mi_audit.engine.reduction import Activations
from mi_audit.engine.workers import SideBySide
from mi_audit.errors import PromptError
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

_Row = tuple[int, tuple[EveryToken, ...]]
"""A prompt by its number, with what was read of it at each place."""


def stream(model: "LoadedModel", prompts: Sequence[Ids], at: At, *, after: int = 0) -> Generator[list[tuple[int, EveryToken]]]:
    """Pass prompts through the decoder as far as a hook point, and give what every token has there.

    Whoever does not take all closes it: passes are under way.

    Args:
        model: the model.
        prompts: token ids of each.
        at: the hook point, its layer absolute.
        after: how many batches are left out, because they were taken before.

    Yields:
        The prompts of a batch, each with its number. The same prompts give the same batches.

    Raises:
        HookPointError: the model has no such hook point, or a pass did not come by it.
        PromptError: a batch does not fit into the device's memory.
    """
    with closing(_stream(model, prompts, (at,), after)) as passing:
        for batch in passing:
            yield [(number, read) for number, (read,) in batch]


def batches_of(model: "LoadedModel", prompts: Sequence[Ids]) -> list[Batch]:
    """The batches in which `stream` passes prompts; on another device they may be others."""
    return plan_batches(prompts, replace(model.packing, shared_prefix=False), token_budget(model, sum(map(len, prompts))))


def streamed(model: "LoadedModel", prompts: Sequence[Ids], at: At) -> list[EveryToken]:
    """What `stream` gives of all prompts, in their order. Raises as it does."""
    return [read for (read,) in streamed_together(model, prompts, (at,))]


def streamed_together(model: "LoadedModel", prompts: Sequence[Ids], places: Sequence[At], progress: Hearer | None = None) -> list[tuple[EveryToken, ...]]:
    """Of all prompts, in their order, what every token has at each of several hook points, read in one pass. Raises as `stream`."""
    found: dict[int, tuple[EveryToken, ...]] = {}
    with reporting(progress, len(prompts), sum(map(len, prompts))), closing(_stream(model, prompts, tuple(places), 0)) as passing:
        for batch in passing:
            found.update(batch)
            if progress is not None:
                progress.advance(len(batch), sum(len(prompts[number]) for number, _ in batch))
    return [found[number] for number in range(len(prompts))]


def _stream(model: "LoadedModel", prompts: Sequence[Ids], places: tuple[At, ...], after: int) -> Generator[list[_Row]]:
    batches = batches_of(model, prompts)[after:]
    passing: deque[Future[list[_Row]]] = deque()
    with closing(SideBySide(model, set(places))) as threads:
        for batch in batches:
            passing.append(threads.start(partial(_read, model, threads.listening, batch, prompts, places)))
            if len(passing) >= 2 * threads.number:
                yield passing.popleft().result()
        while passing:
            yield passing.popleft().result()


def _read(model: "LoadedModel", listening: Listening, batch: Batch, prompts: Sequence[Ids], places: tuple[At, ...]) -> list[_Row]:
    layout = Layout.of(batch, prompts, model.device)
    heard: dict[At, NDArray[np.float32]] = {}
    sinks: dict[At, NDArray[np.bool_]] = {}
    seen_at = {at: model.hook_points.sinks_seen_at(at) for at in places}

    def hear(at: At, acts_RLD: Tensor) -> None:
        acts = Activations(layout, acts_RLD[0, :0].to(model.device), acts_RLD.to(model.device))
        if at in seen_at:
            heard[at] = acts.whole().cpu().numpy()
        if at in seen_at.values():
            sinks[at] = acts.sinks().cpu().numpy()

    halves = batch.halves()
    try:
        listening.pass_through({*seen_at, *seen_at.values()}, layout.arguments(model, None), hear)
    except torch.OutOfMemoryError as error:
        if halves is None:
            raise PromptError(f"a text of {batch.tokens(prompts)} tokens does not fit into the memory of {model.device}; take shorter ones") from error
        heard.clear()
    if halves is not None and not heard:
        return [row for half in halves for row in _read(model, listening, half, prompts, places)]

    def at_each(row: int, ids: Ids) -> tuple[EveryToken, ...]:
        length = len(ids)
        found = {at: EveryToken(ids, acts_BTD[row, :length].copy(), sinks[seen_at[at]][row, :length].copy()) for at, acts_BTD in heard.items()}
        return tuple(found[at] for at in places)

    return [(index, at_each(row, prompts[index])) for row, index in enumerate(batch.prompts)]
