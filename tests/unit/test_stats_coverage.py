"""The committed coverage table: complete, within its bound, and reproducible."""

from dataclasses import replace

import numpy as np
import pytest

from mi_audit.stats.auroc import auroc_value
from mi_audit.stats.claim import by_bounds, decide
from mi_audit.stats.controls import Controls, Null
from mi_audit.stats.rates import rate
from tests.coverage.cells import DRAWS, Cell, grid, latent_correlation
from tests.coverage.grid import DATA_SETS, bound, read, simulate

TABLE = read()


def test_the_table_covers_the_grid_and_nothing_else():
    assert list(TABLE) == [cell.key for cell in grid()]


def test_every_cell_is_within_its_bound_or_declared_inconclusive():
    for key, row in TABLE.items():
        data_sets, alpha = int(row["data_sets"]), float(row["alpha"])
        assert data_sets >= DATA_SETS, key
        most = max(float(row["passes_at_least"]), float(row["passes_at_most"]))
        assert most <= bound(alpha, data_sets) + 1e-4, key
        assert row["result"] == ("INCONCLUSIVE" if float(row["decided"]) == 0.0 else "within"), key


def test_normal_use_is_decidable():
    def decided(*cell):
        return float(TABLE[Cell(*cell).key]["decided"])

    assert decided("auroc", "binormal", "mixed", 0.9, 40, 8, 0.1) == 1.0
    assert decided("auroc", "binormal", "apart", 0.99, 20, 8, 0.3) == 1.0
    assert decided("rate", "beta-binomial", "", 0.01, 40, 4, 0.1) == 1.0
    assert decided("mean", "normal", "", 0.0, 20, 8, 0.1) > 0.98


@pytest.mark.parametrize(
    "cell",
    [
        Cell("auroc", "binormal", "apart", 0.9, 20, 8, 0.3),
        Cell("auroc", "exponential", "mixed 1:3", 0.99, 20, 0, 0.3),
        Cell("rate", "whole groups", "", 0.1, 20, 8, 0.3),
        Cell("mean", "lognormal 1", "", 0.0, 20, 8, 0.3),
        Cell("mean_difference", "lognormal 1", "apart 1:3", 0.5, 40, 8, 0.3),
    ],
    ids=lambda cell: cell.key,
)
def test_cells_drawn_anew_are_within_the_bound(cell):
    row = simulate(cell, 200)
    assert max(float(row["passes_at_least"]), float(row["passes_at_most"])) <= 0.025 + 4 * np.sqrt(0.025 * 0.975 / 200)


def test_the_simulation_would_show_a_bad_method(monkeypatch):
    """The rows taken as independent: what the design effect is there to prevent."""
    draw = DRAWS["rate"]
    monkeypatch.setitem(DRAWS, "rate", lambda cell, rng, codes, sizes: _ungrouped(draw(cell, rng, codes, sizes)))
    assert simulate(Cell("rate", "beta-binomial", "", 0.1, 40, 8, 0.3), 200)["result"] == "EXCEEDS"


def _ungrouped(estimate):
    return rate(np.arange(estimate.n) < round(estimate.value * estimate.n), np.arange(estimate.n))


def test_the_simulation_counts_what_claims_decide():
    rng = np.random.default_rng(3)
    passed = Controls((Null("shuffled labels", (0.0,) * 39, observed=1.0),))
    for cell in list(grid())[::97]:
        estimate = replace(cell.draw(rng), controls=passed)
        for op in (">=", "<="):
            assert decide(estimate, op, 0.3).verdict == by_bounds(estimate, op, 0.3)


@pytest.mark.parametrize("model", ["beta-binomial", "probit", "whole groups"])
def test_drawn_outcomes_have_the_rate_and_the_correlation_asked_for(model, monkeypatch):
    drawn = []
    monkeypatch.setattr("tests.coverage.cells.rate", lambda hits, codes, alpha: drawn.append(hits.reshape(-1, 2)))
    cell = Cell("rate", model, "", 0.2, 200_000, 2, 0.3)
    cell.draw(np.random.default_rng(5))
    pairs = drawn[0]
    assert pairs.mean() == pytest.approx(0.2, abs=0.004)
    assert np.corrcoef(pairs.T)[0, 1] == pytest.approx(0.3, abs=0.012)
    assert 0.3 < latent_correlation(0.2, 0.3) < 0.9


@pytest.mark.parametrize(
    ("model", "layout"), [("binormal", "apart"), ("binormal", "own levels"), ("exponential", "apart 1:3"), ("wide positives", "mixed 1:3")]
)
def test_drawn_scores_have_the_auroc_asked_for(model, layout, monkeypatch):
    drawn = []
    monkeypatch.setattr("tests.coverage.cells.auroc", lambda scores, labels, codes, alpha: drawn.append((scores, labels)))
    Cell("auroc", model, layout, 0.9, 40_000, 8, 0.3).draw(np.random.default_rng(5))
    assert auroc_value(*drawn[0]) == pytest.approx(0.9, abs=0.003)
