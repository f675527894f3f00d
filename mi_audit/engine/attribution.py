"""How much each token of a prompt has to do with a number read at a hook point: integrated gradients from the hook point to the token embeddings.

Sundararajan, Taly & Yan 2017 (arXiv 1703.01365). Along a straight path from the embeddings of a baseline to those of the prompt the gradient is summed by the
midpoint rule; the attributions of all tokens add up to the difference of the number between both ends (completeness), but for what the rule leaves over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mi_audit.errors import PromptError
from mi_audit.model.full_precision import use_full_precision
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

Baseline = Literal["token", "mean", "zeros"]
"""What takes the place of a token's embedding where the path starts: the embedding of one token, the mean embedding of the vocabulary, or zeros."""

FEWEST: Final = 27
MOST: Final = 2187
"""Steps of the path: three times as many until what is left over is small enough, from the fewest to the most. Every third midpoint is one of those before."""
LEFT: Final = 0.01
"""Share of the difference that may be left over."""
TOKENS: Final = 1024
"""In a batch of points of the path."""

Read = Callable[[Tensor], Tensor]
"""From the activations [R, L, width] of R copies of the prompt, float32, to the number that is read of each [R]. It lets gradients through."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """Of a prompt of L tokens.

    Attributes:
        tokens: what each has to do with the number, [L] float64, in its units; 0 for those that keep their embedding along the path.
        value, baseline: the number for the prompt, and at the start of the path.
        steps: of the midpoint rule.
    """

    tokens: NDArray[np.float64]
    value: float
    baseline: float
    steps: int

    @property
    def residual(self) -> float:
        """What the attributions leave over: their sum less the difference."""
        return float(self.tokens.sum()) - (self.value - self.baseline)

    @property
    def complete(self) -> bool:
        """Whether what is left over is at most `LEFT` of the difference."""
        return abs(self.residual) <= LEFT * abs(self.value - self.baseline)


def integrated_gradients(
    model: "LoadedModel", ids: Sequence[int], at: At, read: Read, *, baseline: Baseline = "mean", token: int | None = None, kept: Sequence[int] = ()
) -> Attribution:
    """Attribute a number read at a hook point to the tokens of a prompt.

    Args:
        model: the model; on a CPU in float32, or what its dtype gives.
        ids: the prompt, L tokens.
        at: the hook point, its layer absolute.
        read: the number.
        baseline: where the path starts. A token keeps the path among embeddings that the model knows. Many mean embeddings in a row can make attention sinks of
            the model's own, and at zeros its first norm is undefined, so that the sum converges slowly.
        token: for the baseline `token`.
        kept: positions that keep their own embedding along the path: what belongs to the form and not to the content.

    Raises:
        HookPointError: the model has no such hook point, or the pass did not come by it.
        PromptError: the prompt does not fit into the device's memory, or the number or its gradient is not finite.
        ValueError: an unknown baseline, or `token` without one.
    """
    if baseline not in get_args(Baseline) or (baseline == "token") != (token is not None):
        raise ValueError(f"baseline={baseline!r}, token={token!r}: baselines are {', '.join(get_args(Baseline))}, and 'token' takes a token")
    use_full_precision()
    path = _Path.of(model, ids, baseline, token, kept)
    ends = torch.cat([_passed(model, path.at(torch.tensor([share], device=model.device)), at, read) for share in (0.0, 1.0)]).double()
    start, value = ends.tolist()
    if not np.isfinite([start, value]).all():
        raise PromptError("what is to be attributed is not finite on this prompt; load the model with dtype='float32'")
    steps, numbers = FEWEST, np.arange(FEWEST)
    gradients = torch.zeros_like(path.end, dtype=torch.float64)
    while True:
        gradients += _gradients(model, path, at, read, (numbers + 0.5) / steps)
        if not torch.isfinite(gradients).all():
            raise PromptError("the gradient of what is to be attributed is not finite on this prompt; load the model with dtype='float32'")
        found = Attribution(_along(path, gradients / steps), value, start, steps)
        if found.complete or 3 * steps > MOST:
            return found
        steps *= 3
        numbers = np.flatnonzero(np.arange(steps) % 3 != 1)


@dataclass(frozen=True, eq=False)
class _Path:
    """From `start` to `end`, embeddings [L, d] each."""

    start: Tensor
    end: Tensor

    @classmethod
    def of(cls, model: "LoadedModel", ids: Sequence[int], baseline: Baseline, token: int | None, kept: Sequence[int]) -> "_Path":
        embedding = model.hook_points.decoder.embedding
        with torch.no_grad():
            end = embedding(torch.tensor([list(ids)], device=model.device))[0]
            match baseline:
                case "zeros":
                    start = torch.zeros_like(end)
                case "token":
                    start = embedding(torch.tensor([[token]], device=model.device))[0].expand_as(end).clone()
                case "mean":
                    every = torch.arange(embedding.weight.shape[0], device=model.device)
                    start = torch.cat([embedding(part[None])[0].sum(dim=0, keepdim=True) for part in torch.split(every, 8192)]).sum(dim=0) / len(every)
                    start = start.expand_as(end).clone()
            start[list(kept)] = end[list(kept)]
        return cls(start, end)

    def at(self, shares_R: Tensor) -> Tensor:
        """The embeddings [R, L, d] at these shares of the way."""
        return self.start + shares_R[:, None, None].to(self.end.dtype) * (self.end - self.start)


def _gradients(model: "LoadedModel", path: _Path, at: At, read: Read, shares: NDArray[np.float64]) -> Tensor:
    """The sum over these shares of the way of the number's gradient at the embeddings, [L, d] float64."""
    total = torch.zeros_like(path.end, dtype=torch.float64)
    for part in torch.split(torch.from_numpy(shares).to(model.device, torch.float32), max(1, TOKENS // len(path.end))):
        points = path.at(part).requires_grad_()
        (gradient,) = torch.autograd.grad(_passed(model, points, at, read).sum(), points)
        total += gradient.double().sum(dim=0)
    return total


def _along(path: _Path, gradient_LD: Tensor) -> NDArray[np.float64]:
    """What each token's step along the path makes of the mean gradient [L]."""
    found: NDArray[np.float64] = ((path.end - path.start).double() * gradient_LD).sum(dim=-1).cpu().numpy()
    return found


class _Read(Exception):  # noqa: N818 — no error: it ends a forward pass whose remaining blocks nobody reads
    """The hook point was read."""


def _passed(model: "LoadedModel", points_RLD: Tensor, at: At, read: Read) -> Tensor:
    """The number [R] for embeddings; the pass ends at the hook point."""
    heard: list[Tensor] = []

    def hear(acts_RLD: Tensor) -> None:
        heard.append(read(acts_RLD.to(model.device, torch.float32)))
        raise _Read

    handle = model.hook_points.resolve(at.point, at.layer).listen(hear)
    try:
        with torch.enable_grad():
            model.base(inputs_embeds=points_RLD, use_cache=False)
    except _Read:
        return heard[0]
    except torch.OutOfMemoryError as error:
        raise PromptError(
            f"a prompt of {points_RLD.shape[1]} tokens does not fit into the memory of {model.device} with its gradients; take a shorter one"
        ) from error
    finally:
        handle.remove()
    raise PromptError(f"the forward pass did not come by {at}")
