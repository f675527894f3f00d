"""One HTML page on a latent, from plain numbers; drawn with the report's own style sheet and heat strips."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mi_audit.reporting.heat import Cell, cells
from mi_audit.reporting.html import environment, policy_of
from mi_audit.shipped import reports_dir


@dataclass(frozen=True)
class Strip:
    """A prompt and its tokens as cells."""

    prompt: str
    highest: float
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Bar:
    """A bin of the histogram: from and to which value, how many tokens, and its height in percent of the highest."""

    low: float
    high: float
    count: int
    height: float


@dataclass(frozen=True)
class LatentPage:
    """All that the page says; see `saes.looking.LatentView`."""

    sae: str
    at: str
    model: str
    view: Any
    strips: tuple[Strip, ...]
    bars: tuple[Bar, ...]


def render(sae: str, at: str, model: str, view: Any) -> str:
    """The page on `view`. The same view gives the same text; nothing in it runs or is loaded from elsewhere."""
    reach = max((shown.highest for shown in view.top), default=1.0)
    strips = tuple(Strip(shown.prompt, shown.highest, cells(shown.texts, shown.values, 0.0, reach, shown.sinks)) for shown in view.top)
    page = LatentPage(sae, at, model, view, strips, _bars(view.edges.tolist(), view.counts.tolist()))
    made = environment(reports_dir())
    return made.get_template("latent.html.j2").render(page=page, policy=policy_of(made.get_template("style.css").render()))


def _bars(edges: Sequence[float], counts: Sequence[int]) -> tuple[Bar, ...]:
    highest = max([*counts, 1])
    return tuple(Bar(low, high, count, 100 * count / highest) for low, high, count in zip(edges, edges[1:], counts, strict=False))
