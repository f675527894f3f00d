"""What a benchmark prints: a table, then one line of JSON with the ratios and what was missed."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Generic, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

T = TypeVar("T")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """A variant's seconds in each repeat, and what it returned in the first."""

    seconds: tuple[float, ...]
    result: T

    @property
    def median(self) -> float:
        return median(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """A figure and its target: `at_least` or `at_most`; without either it is printed and not judged."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def missed(self) -> bool:
        within = (self.at_least is None or self.value >= self.at_least) and (self.at_most is None or self.value <= self.at_most)
        return not within  # so that NaN is missed

    @property
    def target(self) -> str:
        if self.at_least is None and self.at_most is None:
            return "not judged"
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


def alternate(variants: Mapping[str, Callable[[], T]], repeats: int, before: Callable[[], object] = lambda: None) -> dict[str, Timed[T]]:
    """Run the variants in turn, `repeats` times round, so that what slows the machine slows them all; `before` each round something that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    results: dict[str, T] = {}
    for _ in range(repeats):
        before()
        for name, run in variants.items():
            began = perf_counter()
            result = run()
            seconds[name].append(perf_counter() - began)
            results.setdefault(name, result)
    return {name: Timed(tuple(seconds[name]), results[name]) for name in variants}


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, its first column to the left and the others to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=150, highlight=False).print(table)


def conclude(benchmark: str, facts: Mapping[str, object], ratios: Sequence[Ratio]) -> int:
    """Print the ratios against their targets and the closing line of JSON.

    Returns:
        the exit code: 1 when a target is missed.
    """
    show("Ratios", ["ratio", "value", "target", ""], [[each.name, f"{each.value:.3g}", each.target, "MISSED" if each.missed else ""] for each in ratios])
    missed = [each.name for each in ratios if each.missed]
    values = {each.name: float(f"{each.value:.4g}") for each in ratios}
    targets = {each.name: each.target for each in ratios}
    print(json.dumps({"benchmark": benchmark, **facts, "ratios": values, "targets": targets, "missed": missed}, ensure_ascii=False))
    return 1 if missed else 0
