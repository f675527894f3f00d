"""The committed table of causal claims about directions that mean nothing keeps its bound; a few seeds are drawn anew."""

import csv

import pytest

from mi_audit.stats.verdict import Verdict
from tests.coverage.grid import bound
from tests.coverage.steering import ALPHA, KINDS, TABLE, tiny

SEEDS = {"tiny": 500, "default": 40}
ANEW = 16


def test_the_table_keeps_its_bound():
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["model"], row["direction"]): int(row["seeds"]) for row in rows} == {(name, kind): seeds for name, seeds in SEEDS.items() for kind in KINDS}
    for row in rows:
        assert int(row["passes"]) / int(row["seeds"]) <= bound(ALPHA, int(row["seeds"])), row
        assert int(row["undecided"]) <= 0.1 * int(row["seeds"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_direction_that_means_nothing_seldom_passes(kind, tmp_path):
    found = list(tiny(tmp_path).outcomes(kind, range(1000, 1000 + ANEW)))
    assert sum(verdict is Verdict.PASS for verdict, _ in found) <= 1
    assert sum(decidable for _, decidable in found) >= ANEW - 2
