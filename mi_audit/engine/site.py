"""A place where prompts are read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from mi_audit.plan.places import At, Tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Encoding(Protocol):
    """What is made of the activation of each token before those of a prompt become one vector. Hashable, equal where `key` is; no torch before `on`."""

    @property
    def key(self) -> str:
        """Everything on which the numbers depend, besides the activations."""

    @property
    def width(self) -> int:
        """m, how many numbers an activation becomes."""

    @property
    def pooling(self) -> Literal["mean", "max"]:
        """How the numbers of several tokens become those of their prompt."""

    @property
    def stem(self) -> "Encoding | None":
        """What has to be made of an activation first, the same for many encodings, so that it is made once for all of them; None where nothing has."""

    @property
    def whole_prompt(self) -> bool:
        """Whether what it makes of a token depends on those before it: it is then given whole prompts [B, T, width], filled up on the right with ones."""

    def on(self, device: "torch.device") -> "Callable[[Tensor], Tensor]":
        """The function from activations [..., width], or from what the stem makes of them, to float32 [..., m] on the device."""


@dataclass(frozen=True, slots=True)
class Site:
    """A hook point, its layer absolute (`At.in_model`), a selection of tokens, and what is made of them where it is not their mean activation.

    Raises ValueError for a relative depth.
    """

    at: At
    tokens: Tokens
    encoding: Encoding | None = None

    def __post_init__(self) -> None:
        if self.at.depth is not None:
            raise ValueError(f"{self.at}: a site needs an absolute layer; make it with at.in_model(n_layers)")

    def __str__(self) -> str:
        return f"{self.at}, {self.tokens}" if self.encoding is None else f"{self.at}, {self.tokens}, {self.encoding.key}"
