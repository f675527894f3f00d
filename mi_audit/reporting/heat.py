"""Heat strips: a detector's score at every token of the prompts that score highest, as cells that a template draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mi_audit.errors import EvidenceError
from mi_audit.evidence.records import AttributedPrompt, ReadingRecord
from mi_audit.evidence.stretches import stretches
from mi_audit.reporting.axis import LARGEST
from mi_audit.reporting.text import visible

LEVELS: Final = 4
"""Steps of colour on each side of the centre."""
MAX_SHOWN: Final = 12
"""Characters of a token's text that a cell has room for."""
_SIGNS: Final = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍"})
_REDACTED: Final = "▢"
_NOTHING_MORE: Final = "·"


@dataclass(frozen=True)
class Cell:
    """A token: its text (a neutral mark where texts are redacted), its score in figures, and its looks, names of classes that the style sheet draws."""

    text: str
    score: str
    looks: str


@dataclass(frozen=True)
class Attributed:
    """What each token of a prompt has to do with its score: cells in the order of the strip's, on a scale of the reading's own about 0."""

    record: AttributedPrompt
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Strip:
    """A prompt: its score in the reading, its last tokens, the first of them at position `start`, the positions of what was read and of sinks in words, and
    what each token has to do with the score where that was asked for."""

    prompt: str
    value: float
    start: int
    cells: tuple[Cell, ...]
    read: str
    sinks: str
    attributed: Attributed | None


@dataclass(frozen=True)
class Heat:
    """The strips of a reading on one scale: symmetric about `centre`, full colour from `reach` away on. `pooled`: several tokens of a prompt were read."""

    strips: tuple[Strip, ...]
    centre: float
    reach: float
    pooled: bool


class TokenScores:
    """The token table of a bundle, by reading and prompt."""

    def __init__(self, table: pa.Table) -> None:
        self._tables = {str(measurement): part for (measurement,), part in stretches(table, "measurement")}

    def heat(self, reading: ReadingRecord, highest: Sequence[tuple[str, float]], middle: float, drawn: int) -> Heat | None:
        """Strips of a reading's prompts; None where it has none.

        Args:
            reading: whose.
            highest: ids and scores of the prompts that score highest, in order, at least as many as the table holds of the reading.
            middle: the median of the reading's scores.
            drawn: tokens of a prompt to draw, the last ones; 0 for no strips.

        Raises:
            EvidenceError: the table holds other prompts than those that score highest.
        """
        table = self._tables.get(reading.id)
        if table is None or not drawn:
            return None
        parts = [(name, part) for (name,), part in stretches(table, "prompt")]
        if [name for name, _ in parts] != [name for name, _ in highest[: len(parts)]]:
            raise EvidenceError(f"tokens.parquet does not hold the prompts of the reading {reading.id} that score highest; its tables are of different runs")
        centre = middle if reading.threshold is None else reading.threshold
        reach = _reach(table, centre)
        driven = {} if reading.attribution is None else {each.prompt: each for each in reading.attribution.prompts}
        widest = _widest(table)
        strips = tuple(
            _strip(*prompt, part, centre, reach, drawn, _attributed(driven.get(prompt[0]), part, widest, drawn))
            for prompt, (_, part) in zip(highest, parts, strict=False)
        )
        return Heat(strips, centre, reach, any(int(np.asarray(part["read"]).sum()) > 1 for _, part in parts))


def _reach(table: pa.Table, centre: float) -> float:
    """How far from the centre 95 % of the tokens lie, attention sinks left aside: they would leave no colour to the others."""
    away = np.abs(_scores(table) - np.clip(centre, -LARGEST, LARGEST))
    plain = away[~np.asarray(table["sink"])]
    reach = float(np.quantile(plain if len(plain) else away, 0.95))
    return reach or 1.0


def cells(texts: Sequence[str], scores: NDArray[np.float64], centre: float, reach: float, sinks: NDArray[np.bool_]) -> tuple[Cell, ...]:
    """A cell for each token, on a scale about `centre` that has full colour from `reach` away on; attention sinks are marked."""
    levels = np.clip(np.rint((scores - centre) / (reach or 1.0) * LEVELS), -LEVELS, LEVELS).astype(int).tolist()
    return tuple(
        Cell(_shown(text), _figures(score), _looks(level, read=False, sink=sink)) for text, score, level, sink in zip(texts, scores, levels, sinks, strict=True)
    )


def _widest(table: pa.Table) -> float:
    """The attribution that has full colour: 95 % of the tokens' stay below it."""
    found = np.abs(np.asarray(table["attribution"].drop_null(), dtype=np.float64))
    return float(np.quantile(np.clip(found, 0, LARGEST), 0.95)) or 1.0 if len(found) else 1.0


def _attributed(record: AttributedPrompt | None, table: pa.Table, widest: float, drawn: int) -> Attributed | None:
    if record is None:
        return None
    last = table.slice(max(table.num_rows - drawn, 0))
    parts = np.clip(np.asarray(last["attribution"], dtype=np.float64), -LARGEST, LARGEST)
    levels = np.clip(np.rint(parts / widest * LEVELS), -LEVELS, LEVELS).astype(int).tolist()
    texts: list[str | None] = last["text"].to_pylist()
    cells = (Cell(_shown(text), _figures(part), _looks(level, read=False, sink=False)) for text, part, level in zip(texts, parts, levels, strict=True))
    return Attributed(record, tuple(cells))


def _scores(table: pa.Table) -> NDArray[np.float64]:
    return np.clip(np.asarray(table["score"], dtype=np.float64), -LARGEST, LARGEST)


def _strip(prompt: str, value: float, table: pa.Table, centre: float, reach: float, drawn: int, attributed: Attributed | None) -> Strip:
    positions, read, sinks = (np.asarray(table[name]) for name in ("position", "read", "sink"))
    last = table.slice(max(table.num_rows - drawn, 0))
    scores = _scores(last)
    levels = np.clip(np.rint((scores - np.clip(centre, -LARGEST, LARGEST)) / reach * LEVELS), -LEVELS, LEVELS).astype(int).tolist()
    texts: list[str | None] = last["text"].to_pylist()
    marks: list[tuple[bool, bool]] = list(zip(read[-len(levels) :].tolist(), sinks[-len(levels) :].tolist(), strict=True))
    return Strip(
        prompt=prompt,
        value=value,
        start=int(positions[-len(levels)]),
        cells=tuple(Cell(_shown(text), _figures(score), _looks(level, *mark)) for text, score, level, mark in zip(texts, scores, levels, marks, strict=True)),
        read=_ranges(positions[read]),
        sinks=_ranges(positions[sinks]),
        attributed=attributed,
    )


def _shown(text: str | None) -> str:
    if text is None:
        return _REDACTED
    shown = ""
    for character in text.translate(_SIGNS):
        sign = visible(character)
        if len(shown) + len(sign) > MAX_SHOWN:
            return f"{shown}…"
        shown += sign
    return shown or _NOTHING_MORE


def _figures(score: float) -> str:
    """Three digits, in the room of a cell."""
    return f"{score:.3g}".replace("-", "−")


def _looks(level: int, read: bool, sink: bool) -> str:
    tint = "" if level == 0 else f"{'a' if level > 0 else 'b'}{abs(level)}"
    return " ".join(name for name, holds in ((tint, tint), ("r", read), ("s", sink)) if holds)


def _ranges(positions: NDArray[np.integer]) -> str:
    """`3, 5–9`; empty for none."""
    cuts = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1) if len(positions) else []
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in cuts)
