"""Forward passes in which interventions change what stands at hook points, at chosen tokens."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import local
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from mi_audit.engine.interventions import Intervention
from mi_audit.errors import HookPointError, NotFiniteError
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel


@dataclass(frozen=True, eq=False)
class Step:
    """An intervention at a hook point, its layer absolute, on the tokens of a batch where `mask` bool [R, L] is True.

    `Layout.mask` makes a mask of the positions that `select` gives. That padding, a BOS token and attention sinks stay out of it is the caller's to see to.
    """

    at: At
    mask: Tensor
    intervention: Intervention


class Intervening:
    """Interventions at places of a model, a context manager: hooks are there inside of it and gone afterwards, also after an error.

    Passes inside of `applying` are intervened on, and no others. Like listeners, hooks are neither added nor removed while a pass is under way, and what is
    applied is for the passes of the thread that applies it.

    Raises:
        HookPointError: the model has no such hook point, or it can't be changed; on entering.
    """

    def __init__(self, model: "LoadedModel", places: Iterable[At]) -> None:
        self._model, self._places = model, set(places)
        self._hooks, self._own = ExitStack(), _Own()

    def __enter__(self) -> Self:
        points = self._model.hook_points
        with ExitStack() as added:
            for tap, at in sorted(((points.resolve(at.point, at.layer), at) for at in self._places), key=lambda pair: pair[0].order):
                added.callback(tap.intervene(partial(self._changed, at)).remove)
            self._hooks = added.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hooks.close()

    @contextmanager
    def applying(self, steps: Sequence[Step]) -> Iterator[None]:
        """Apply interventions in this thread's passes inside of it, several at one place in the order in which they are given.

        A token that no mask holds keeps its activation to the last bit. Activations of fewer digits are changed in float32 and rounded once.

        Raises:
            ValueError: a step at none of the places that were named before, or others are being applied already.
            HookPointError: an intervention is made for another width than its place has; or, once the passes are done, none came by a place. In a pass: a mask
                has another shape than the batch, or an intervention does not fit it.
            NotFiniteError: once the passes are done, what was put in is not finite; with the number of the first row where it is not.
        """
        if self._own.applied is not None:
            raise ValueError("other interventions are being applied: give all of them at once")
        applied = _Applied()
        for step in steps:
            if step.at not in self._places:
                raise ValueError(f"{step.at} is none of the places that were named: {', '.join(sorted(map(str, self._places)))}")
            tap = self._model.hook_points.resolve(step.at.point, step.at.layer)
            if step.intervention.width not in (None, tap.width):
                raise HookPointError(
                    f"{tap} has {tap.width} numbers per token, and {type(step.intervention).__name__} is made for {step.intervention.width}:"
                    " it was fitted at another hook point or on another model"
                )
            applied.steps.setdefault(step.at, []).append(step)
        self._own.applied = applied
        try:
            yield
        finally:
            self._own.applied = None
        if missed := applied.steps.keys() - applied.finite.keys():
            raise HookPointError(f"no forward pass came by {', '.join(sorted(map(str, missed)))}, so nothing was changed there")
        if overflown := {at: int((~finite_R).nonzero()[0]) for at, finite_R in applied.finite.items() if not bool(finite_R.all())}:
            raise NotFiniteError(
                f"what interventions put in at {', '.join(map(str, overflown))} is not finite: {self._model.dtype} does not hold it, or what stood there was"
                " not finite",
                min(overflown.values()),
            )

    def _changed(self, at: At, acts_RLD: Tensor) -> Tensor | None:
        applied = self._own.applied
        if applied is None or at not in applied.steps:
            return None
        new_RLD = acts_RLD.to(torch.promote_types(acts_RLD.dtype, torch.float32))
        touched_RL1 = torch.zeros_like(new_RLD[..., :1], dtype=torch.bool)
        for step in applied.steps[at]:
            if step.mask.shape != acts_RLD.shape[:2]:
                raise HookPointError(f"a mask of shape {tuple(step.mask.shape)} does not fit the batch {tuple(acts_RLD.shape[:2])} at {at}")
            mask_RL1 = step.mask.to(acts_RLD.device)[..., None]
            new_RLD = torch.where(mask_RL1, step.intervention(new_RLD), new_RLD)
            touched_RL1 = touched_RL1 | mask_RL1
        changed = new_RLD.to(acts_RLD.dtype)
        # a norm squares what it is given: what has no finite length would come out of it as zeros, which no check of the logits sees
        lengths_RL1 = torch.linalg.vector_norm(changed.float().square(), ord=1, dim=-1, keepdim=True)
        finite_R = (lengths_RL1.isfinite() | ~touched_RL1).flatten(start_dim=1).all(dim=1)
        applied.finite[at] = finite_R & applied.finite[at] if at in applied.finite else finite_R
        return changed


@dataclass(slots=True)
class _Applied:
    """The steps at each place, and, where a pass came by, in which rows [R] all that was put in is finite (read once the passes are done: a GPU is not waited
    for)."""

    steps: dict[At, list[Step]] = field(default_factory=dict)
    finite: dict[At, Tensor] = field(default_factory=dict)


class _Own(local):
    """What is a thread's own: the interventions that its passes are given."""

    applied: _Applied | None = None
