"""The activation of every token at one hook point, of more prompts than memory holds: batch by batch, in an order that follows from the prompts alone."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mi_audit.engine.batches import Batch, Ids, plan_batches
from mi_audit.engine.budget import token_budget
from mi_audit.engine.every_token import EveryToken
from mi_audit.engine.layout import Layout
from mi_audit.engine.listening import Listening
from mi_audit.engine.reduction import Activations
from mi_audit.engine.workers import SideBySide
from mi_audit.errors import PromptError
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel


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
    batches = batches_of(model, prompts)[after:]
    passing: deque[Future[list[tuple[int, EveryToken]]]] = deque()
    with closing(SideBySide(model, {at})) as threads:
        for batch in batches:
            passing.append(threads.start(partial(_read, model, threads.listening, batch, prompts, at)))
            if len(passing) >= 2 * threads.number:
                yield passing.popleft().result()
        while passing:
            yield passing.popleft().result()


def batches_of(model: "LoadedModel", prompts: Sequence[Ids]) -> list[Batch]:
    """The batches in which `stream` passes prompts; on another device they may be others."""
    return plan_batches(prompts, replace(model.packing, shared_prefix=False), token_budget(model, sum(map(len, prompts))))


def streamed(model: "LoadedModel", prompts: Sequence[Ids], at: At) -> list[EveryToken]:
    """What `stream` gives of all prompts, in their order. Raises as it does."""
    with closing(stream(model, prompts, at)) as passing:
        found = dict(pair for batch in passing for pair in batch)
    return [found[number] for number in range(len(prompts))]


def _read(model: "LoadedModel", listening: Listening, batch: Batch, prompts: Sequence[Ids], at: At) -> list[tuple[int, EveryToken]]:
    layout = Layout.of(batch, prompts, model.device)
    heard: list[Tensor] = []

    def hear(_: At, acts_RLD: Tensor) -> None:
        acts = Activations(layout, acts_RLD[0, :0].to(model.device), acts_RLD.to(model.device))
        prompts_B, tokens_T = layout.real.shape
        heard.append(acts.at(torch.arange(tokens_T, device=model.device).expand(prompts_B, -1)).cpu())
        heard.append(acts.sinks().cpu())

    try:
        listening.pass_through({at}, layout.arguments(model, None), hear)
    except torch.OutOfMemoryError as error:
        raise PromptError(f"{batch.tokens(prompts)} tokens do not fit into the memory of {model.device} together; take shorter texts") from error
    acts_BTD, sinks_BT = (each.numpy() for each in heard)
    lengths = [len(prompts[index]) for index in batch.prompts]
    return [
        (index, EveryToken(prompts[index], acts_BTD[row, :length].copy(), sinks_BT[row, :length].copy()))
        for row, (index, length) in enumerate(zip(batch.prompts, lengths, strict=True))
    ]
