"""Simulate every cell of the grid and write coverage.csv: `python -m tests.coverage.grid`. It takes up where it was stopped."""

import argparse
import csv
import hashlib
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np

from mi_audit.stats.claim import by_bounds
from mi_audit.stats.verdict import Verdict
from tests.coverage.cells import Cell, grid, truth

TABLE = Path(__file__).with_name("coverage.csv")
DATA_SETS = 2000
MEASURED = ("data_sets", "passes_at_least", "passes_at_most", "bound", "decided", "median_low", "median_high", "result")


def bound(alpha: float, data_sets: int) -> float:
    """The share of false passes that is allowed: alpha and two standard errors."""
    return alpha + 2.0 * float(np.sqrt(alpha * (1.0 - alpha) / data_sets))


def simulate(cell: Cell, data_sets: int) -> dict[str, str]:
    """Count how often `>= truth` and `<= truth` pass; seeded by the cell's own description."""
    rng = np.random.default_rng(list(hashlib.sha256(cell.key.encode()).digest()))
    true = truth(cell)
    passes: Counter[str] = Counter()
    decided, lows, highs = 0, [], []
    for _ in range(data_sets):
        estimate = cell.draw(rng)
        passes.update(op for op in (">=", "<=") if by_bounds(estimate, op, true) is Verdict.PASS)
        decided += not estimate.undecided
        lows.append(estimate.low)
        highs.append(estimate.high)
    at_least, at_most = passes[">="] / data_sets, passes["<="] / data_sets
    allowed = bound(cell.alpha, data_sets)
    result = "INCONCLUSIVE" if not decided else "within" if max(at_least, at_most) <= allowed else "EXCEEDS"
    numbers = (data_sets, at_least, at_most, allowed, decided / data_sets, np.median(lows), np.median(highs))
    return dict(zip(MEASURED, (*(f"{number:.4g}" for number in numbers), result), strict=True))


def read(path: Path = TABLE) -> dict[str, dict[str, str]]:
    """The rows of the table, by cell."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {",".join(row[field.name] for field in fields(Cell)): row for row in csv.DictReader(file)}


def main() -> None:
    """Fill the table in the order of the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quantity", nargs="*", help="only the cells of these quantities")
    parser.add_argument("--table", type=Path, default=TABLE, help="where to write, if not the committed table")
    asked, table = (arguments := parser.parse_args()).quantity, arguments.table
    rows = read(table)
    cells = list(grid())
    names = (*(field.name for field in fields(Cell)), *MEASURED)
    for number, cell in enumerate(cells, 1):
        if cell.key in rows or (asked and cell.quantity not in asked):
            continue
        rows[cell.key] = {**{name: str(part) for name, part in vars(cell).items()}, **simulate(cell, DATA_SETS)}
        print(f"{number}/{len(cells)} {cell.key} {rows[cell.key]['passes_at_least']} {rows[cell.key]['passes_at_most']} {rows[cell.key]['result']}", flush=True)
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[each.key] for each in cells if each.key in rows)


if __name__ == "__main__":
    main()
