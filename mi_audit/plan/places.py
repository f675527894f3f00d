"""Where in a model something is read: a hook point and a selection of tokens."""

import math
from dataclasses import dataclass
from typing import Literal

from mi_audit.errors import PlanError
from mi_audit.plan.digest import Json

HOOK_POINTS = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn.hook_z", "ln2.hook_normalized", "mlp.hook_in", "mlp.hook_post")
"""TransformerLens's names; `embed` alone has no layer."""


@dataclass(frozen=True)
class At:
    """A hook point, by standard name, at an absolute layer or a relative depth."""

    point: str
    layer: int | None = None
    depth: float | None = None

    def layer_in(self, n_layers: int) -> int | None:
        """The layer in a model of `n_layers` blocks. Depth 0 is the first block and 1 the last; between them the nearest block, halves towards the last.

        Raises:
            PlanError: the layer does not exist in this model.
        """
        if self.point == "embed":
            return None
        if self.layer is not None:
            if self.layer >= n_layers:
                raise PlanError(
                    f"{self} asks for layer {self.layer}, but the model has layers 0 to {n_layers - 1}; use mi.at({self.point!r}, depth=…) to fit every size"
                )
            return self.layer
        assert self.depth is not None
        return math.floor(self.depth * (n_layers - 1) + 0.5)

    def in_model(self, n_layers: int) -> "At":
        """The same place with its layer made absolute."""
        return At(self.point, layer=self.layer_in(n_layers))

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        return {"point": self.point, "layer": self.layer, "depth": self.depth}

    def __str__(self) -> str:
        if self.point == "embed":
            return "embed"
        return f"{self.point} at layer {self.layer}" if self.layer is not None else f"{self.point} at depth {self.depth:g}"


def at(point: str, *, layer: int | None = None, depth: float | None = None) -> At:
    """Name a hook point: `mi.at("resid_post", depth=0.6)` or `mi.at("resid_post", layer=16)`.

    Args:
        point: a TransformerLens name, one of `embed`, `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`, `attn.hook_z`, `ln2.hook_normalized` (what
            the norm before the feed-forward gives, before its gain), `mlp.hook_in` (after it: what the feed-forward reads), `mlp.hook_post`.
        layer: the block, counted from 0.
        depth: relative depth from 0 (first block) to 1 (last block), rounded to the nearest block, halves towards the last:
            `floor(depth × (n_layers − 1) + 0.5)`. One audit then serves models of any size.

    Raises:
        PlanError: an unknown name, both or neither of layer and depth, or a value out of range.
    """
    if point not in HOOK_POINTS:
        raise PlanError(f"unknown hook point {point!r}; known are {', '.join(HOOK_POINTS)}")
    if point == "embed":
        if layer is not None or depth is not None:
            raise PlanError("the hook point 'embed' has no layer: write mi.at('embed')")
        return At("embed")
    if (layer is None) == (depth is None):
        raise PlanError(f"mi.at({point!r}, …) takes exactly one of layer= and depth=")
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int) or layer < 0):
        raise PlanError(f"mi.at({point!r}, layer={layer!r}): a layer is a whole number from 0")
    if depth is not None:
        if isinstance(depth, bool) or not isinstance(depth, int | float) or not 0 <= depth <= 1:
            raise PlanError(f"mi.at({point!r}, depth={depth!r}): a depth is a number from 0 to 1")
        return At(point, depth=float(depth))
    return At(point, layer=layer)


@dataclass(frozen=True)
class Tokens:
    """Which tokens of a prompt are read. Where there are several their activations are averaged, attention sinks left out."""

    kind: Literal["last", "all", "response", "span", "field"]
    start: int | None = None
    end: int | None = None
    name: str | None = None

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        return {"kind": self.kind, "start": self.start, "end": self.end, "name": self.name}

    def __str__(self) -> str:
        match self.kind:
            case "span":
                return f"characters {self.start} to {self.end}"
            case "field":
                return f"last token of {self.name!r}"
            case "last":
                return "last token"
            case _:
                return f"{self.kind} tokens"

    @classmethod
    def of(cls, tokens: "str | Tokens") -> "Tokens":
        """`last`, `all` or `response` by name; anything else comes from `span` or `last_of`."""
        match tokens:
            case Tokens():
                return tokens
            case "last" | "all" | "response":
                return cls(tokens)
            case _:
                raise PlanError(f"unknown token selection {tokens!r}; use 'last', 'all', 'response', mi.span(start, end) or mi.last_of(field)")


def span(start: int, end: int) -> Tokens:
    """The tokens that overlap characters `start` (inclusive) to `end` (exclusive) of the prompt's text, or of a chat's last message."""
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end):
        raise PlanError(f"mi.span({start!r}, {end!r}): a span is two whole numbers, 0 ≤ start < end")
    return Tokens("span", start=start, end=end)


def last_of(field: str) -> Tokens:
    """The last token of the text that the prompt's field names, where that text last occurs in the prompt (e.g. a subject in a factual statement)."""
    if not isinstance(field, str) or not field:
        raise PlanError(f"mi.last_of({field!r}): name a field of the suite")
    return Tokens("field", name=field)
