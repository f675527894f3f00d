"""Many variants of one prompt, each with its own interventions at the same tokens, read as one rectangle of rows, all of them as long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from mi_audit.engine.batches import DEFAULT_BUDGET, Ids
from mi_audit.engine.fork_check import why_whole
from mi_audit.engine.intervening import Step
from mi_audit.engine.interventions import Intervention
from mi_audit.engine.rectangle import LEAST_SHARED, Looked, Rectangle, blocks_below, start_of
from mi_audit.engine.sharing import Session, shared
from mi_audit.errors import HookPointError, NotFiniteError, PromptError
from mi_audit.model.full_precision import use_full_precision
from mi_audit.model.packing import reaches
from mi_audit.model.ranges import ranges
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from mi_audit.model.loaded import LoadedModel

LOGITS: Final = 256
"""Positions of a chunk whose logits are read, at most: each has as many as the vocabulary has entries."""

Interventions = Callable[[Tensor], Sequence[tuple[At, Intervention]]]
"""What is applied to rows that are these variants, int64 [R] on the host, and where; several at one place in their order. An intervention is given
[R, L, width], the prompt's last L tokens in each row, and L may be less than the prompt's length."""


@dataclass(frozen=True, eq=False)
class Read:
    """What is read of each variant: `values(found [R, K, ·], base [K, ·])` gives m numbers [R, m] of what stands at `positions`, K of them.

    That is the logits of the next token [.., vocabulary] float32 where `at` is None, else the activation [.., width] float32 at that hook point, its layer
    absolute, after what is changed there; `base` is the same of the prompt as it is.
    """

    positions: tuple[int, ...]
    values: Callable[[Tensor, Tensor], Tensor]
    at: At | None = None


def read_variants(
    model: "LoadedModel",
    ids: Ids,
    touched: Sequence[int],
    places: Sequence[At],
    variants: int,
    interventions: Interventions,
    read: Read,
    *,
    budget: int = DEFAULT_BUDGET,
) -> tuple[Tensor, Tensor]:
    """Read a prompt as it is and so many variants of it.

    The prompt is passed once as it is. Of a variant, blocks below the earliest place are not computed again, nor tokens before the first that is touched or
    read (`how_passed`). Threads may do so side by side; they wait for each other's passes as hooks are added, unless somebody `holding` them has done so.

    Args:
        model: the model.
        ids: the prompt's token ids [T].
        touched: positions of the tokens to which interventions are applied, the same at each place. That a BOS token and attention sinks stay out of them is
            the caller's to see to.
        places: the hook points where they are applied, their layers absolute.
        variants: how many.
        interventions: gives what is applied to some of the variants, at some or all of the places; called again where a chunk of them was too large.
        read: what is read.
        budget: tokens that pass through the model together.

    Returns:
        (base [m], found [variants, m]), float64 on the host.

    Raises:
        HookPointError: the model lacks a hook point, or it can't be changed; what is read comes before the earliest place, or not after every one where
            something is changed; an intervention does not fit.
        NotFiniteError: what an intervention puts in or what is read is not finite; with the number of the first such variant.
        PromptError: no token is touched or read, or one that the prompt does not have; the prompt does not fit into the device's memory.
        ModelError: the environment takes digits off float32.
    """
    for what, positions in (("touched", touched), ("read", read.positions)):
        if not positions or not all(0 <= position < len(ids) for position in positions):
            raise PromptError(f"of a prompt of {len(ids)} tokens those at {list(positions)} are {what}: name one at least, and none beyond its ends")
    use_full_precision()
    with torch.inference_mode():
        whole = bool(why_whole(model))
        start = 0 if whole else start_of(model, len(ids), min(*touched, *read.positions))
        with holding(model, places, read.at) as session:
            try:
                rectangle = Rectangle.of(model, session, ids, start, Looked(tuple(read.positions), read.at))
            except torch.OutOfMemoryError as error:
                raise _too_long(model, ids) from error
            base = _values(read, rectangle.base[None], rectangle.base, None)
            chunks = _in_chunks(rectangle, touched, variants, interventions, read, budget)
    return base[0].clone(), torch.cat([base[:0], *chunks])  # outside of inference mode, so that they may be written to


def holding(model: "LoadedModel", places: Sequence[At], at: At | None = None) -> "AbstractContextManager[Session]":
    """Keep the hooks of `read_variants` at these places, and at what it reads, from one call to the next: for who calls it often or in several threads.

    Raises:
        HookPointError: as there.
    """
    points = model.hook_points
    taps = [points.resolve(place.point, place.layer) for place in places]
    if not taps:
        raise HookPointError("no hook point is named where variants are to differ")
    first = min(taps, key=lambda tap: tap.order)
    if at is not None and points.resolve(at.point, at.layer).order < first.order:
        raise HookPointError(f"{at} is read, and a forward pass comes by it before {first}, the first place that is changed: nothing would be seen there")
    below = 0 if why_whole(model) else blocks_below(At(first.name, layer=first.layer))
    return shared(model, (frozenset(places), at, below))


def how_passed(model: "LoadedModel", place: At) -> str:
    """What `read_variants` computes once for all variants of a prompt, with the hook point as the earliest place, its layer absolute; a sentence for the
    evidence."""
    if reason := why_whole(model):
        return f"whole passes: {reason}"
    below, reach = blocks_below(place), reaches(model.config)
    blocks = (
        f"blocks below ({ranges(list(range(below)))}) are passed once for each prompt"
        if below
        else "blocks below are passed once for each prompt (there are none)"
    )
    within = f" in prompts of at most {min(reach)}, as far as local attention reaches" if reach else ""
    return f"{blocks}, and so are the tokens before the first that is touched or read, where they are {LEAST_SHARED} or more{within}"


def _in_chunks(rectangle: Rectangle, touched: Sequence[int], variants: int, interventions: Interventions, read: Read, budget: int) -> list[Tensor]:
    rows = max(1, min(budget // rectangle.width, LOGITS // len(read.positions) if read.at is None else variants))
    chunks: list[Tensor] = []
    done = 0
    while done < variants:
        chunk = slice(done, min(done + rows, variants))
        try:
            chunks.append(_chunk(rectangle, touched, chunk, interventions, read))
        except torch.OutOfMemoryError as error:
            if chunk.stop - done == 1:
                raise _too_long(rectangle.model, rectangle.ids.tolist()) from error
            rows = (chunk.stop - done) // 2
            continue
        done = chunk.stop
    return chunks


def _chunk(rectangle: Rectangle, touched: Sequence[int], chunk: slice, interventions: Interventions, read: Read) -> Tensor:
    """What is read of these variants [R, m]."""
    rows = chunk.stop - chunk.start
    mask = rectangle.mask(touched, rows)
    steps = [Step(at, mask, intervention) for at, intervention in interventions(torch.arange(chunk.start, chunk.stop))]
    overflown: NotFiniteError | None = None
    try:
        with rectangle.session.intervening.applying(steps):
            found_RKW = rectangle.passed(rows)
    except NotFiniteError as error:
        overflown = error
    first = _first_not_finite(found_RKW)
    if overflown is not None and overflown.variant is not None and overflown.variant <= (rows if first is None else first):
        number = chunk.start + overflown.variant
        raise NotFiniteError(f"variant {number} of a prompt: {overflown}", number) from overflown
    return _values(read, found_RKW, rectangle.base, chunk.start)


def _values(read: Read, found_RKW: Tensor, base_KW: Tensor, start: int | None) -> Tensor:
    """What is made of what stands there [R, m], float64 on the host; `start` is the number of the first of these variants, None for the prompt as it is."""
    what = "the logits are" if read.at is None else f"the activation at {read.at} is"
    if (row := _first_not_finite(found_RKW)) is None:
        values: Tensor = read.values(found_RKW, base_KW).to("cpu", torch.float64)
        if (row := _first_not_finite(values)) is None:
            return values
        what = "what is measured is"
    number = None if start is None else start + row
    who = "a prompt as it is" if number is None else f"variant {number} of a prompt"
    raise NotFiniteError(f"{who}: {what} not finite", number)


def _first_not_finite(values: Tensor) -> int | None:
    rows = values.isfinite().flatten(start_dim=1).all(dim=1)
    return None if bool(rows.all()) else int((~rows).nonzero()[0])


def _too_long(model: "LoadedModel", ids: Sequence[int]) -> PromptError:
    return PromptError(f"a prompt of {len(ids)} tokens does not fit into the memory of {model.device}; free some of it, or use --audit-device cpu")
