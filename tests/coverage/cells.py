"""The cells of the coverage grid: what is drawn, and what is true of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.random import Generator
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import multivariate_normal

from mi_audit.stats.auroc import auroc, auroc_difference
from mi_audit.stats.dose import Dose
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.means import effect_size, mean, mean_difference, paired_difference
from mi_audit.stats.rates import rate
from mi_audit.stats.simulate import beta_binomial_hits

UNEVEN = 0  # rows per group: 1 + geometric, mean 8


@dataclass(frozen=True)
class Cell:
    """One row of the table. `rows` is the number of prompts in a group, `UNEVEN` where it varies; `layout` says how classes lie in groups."""

    quantity: str
    model: str
    layout: str
    value: float
    groups: int
    rows: int
    icc: float
    alpha: float = 0.025

    @property
    def key(self) -> str:
        return ",".join(str(part) for part in vars(self).values())

    def draw(self, rng: Generator) -> Estimate:
        """Draw one data set and estimate."""
        sizes = 1 + rng.geometric(1 / 7, self.groups) if self.rows == UNEVEN else np.full(self.groups, self.rows)
        return DRAWS[self.quantity](self, rng, np.repeat(np.arange(self.groups), sizes), sizes)


def grid() -> Iterator[Cell]:
    """Every cell."""
    aurocs, groups, iccs = (0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99), (10, 20, 40, 60), (0.0, 0.1, 0.3)
    for layout, value, count, icc in product(("mixed", "apart", "own levels"), aurocs, groups, iccs):
        if layout != "own levels" or icc == 0.3:
            yield Cell("auroc", "binormal", layout, value, count, 8, icc)
    for layout, value, count in product(("mixed", "apart"), (0.6, 0.9, 0.99), groups):
        yield Cell("auroc", "binormal", layout, value, count, 2, 0.3)
    shapes = ("exponential", "wide positives")
    for model, layout, value, count, icc in product(shapes, ("mixed 1:3", "apart 1:3"), (0.6, 0.9, 0.97, 0.99), (10, 20, 40), (0.0, 0.3)):
        yield Cell("auroc", model, layout, value, count, UNEVEN, icc)
    for alpha, layout, value, count in product((0.005, 0.1), ("mixed", "apart"), (0.6, 0.99), (10, 40)):
        yield Cell("auroc", "binormal", layout, value, count, 8, 0.3, alpha)
    for value, count, icc in product((0.8, 0.95), (10, 20, 40), (0.0, 0.3)):
        yield Cell("auroc difference", "binormal", "mixed", value, count, 8, icc)

    rates = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    for value, count in product(rates, (20, 60, 200, 600)):
        yield Cell("rate", "independent", "", value, count, 1, 0.0)
    for value, count, rows, icc in product(rates, (10, 20, 40, 60, 120), (4, UNEVEN), iccs):
        yield Cell("rate", "beta-binomial", "", value, count, rows, icc)
    for model, value, count, rows in product(("probit", "whole groups"), rates, (10, 20, 40, 60, 120), (8, UNEVEN)):
        yield Cell("rate", model, "", value, count, rows, 0.3)
    for alpha, value, count in product((0.005, 0.1), (0.02, 0.1, 0.5), (10, 40)):
        yield Cell("rate", "beta-binomial", "", value, count, 8, 0.3, alpha)

    shapes = ("normal", "lognormal 0.5", "lognormal 1")
    for model, count, (rows, icc) in product(shapes, (10, 20, 40, 60), ((1, 0.0), (8, 0.1), (8, 0.3), (UNEVEN, 0.3))):
        yield Cell("mean", model, "", 0.0, count, rows, icc)
    for quantity, model, layout, count, icc in product(("mean_difference", "effect_size"), shapes, ("mixed", "apart 1:3"), (10, 20, 40, 60), (0.0, 0.3)):
        yield Cell(quantity, model, layout, 0.5, count, 8, icc)
    for quantity, model, icc in product(("mean_difference", "effect_size"), shapes, (0.0, 0.3)):
        yield Cell(quantity, model, "apart 1:3", 0.5, 80, 8, icc)
        yield Cell(quantity, model, "apart", 0.5, 40, 8, icc)
    for model, count, icc in product(shapes, (10, 20, 40, 60), (0.0, 0.3)):
        yield Cell("paired_difference", model, "mixed", 0.5, count, 8, icc)
    for alpha, model, count in product((0.005, 0.1), shapes, (20, 60)):
        yield Cell("mean", model, "", 0.0, count, 8, 0.3, alpha)

    for model, count, (rows, icc) in product(shapes, (20, 40), ((1, 0.0), (8, 0.3), (UNEVEN, 0.3))):
        yield Cell("slope", model, "4 equal", 0.0, count, rows, icc)
    for quantity, steps in (("smallest_step", (4, 12)), ("sign_reversal", (4,))):
        for each, model, layout, count, (rows, icc) in product(steps, shapes, ("equal", "one least"), (20, 40), ((1, 0.0), (8, 0.3))):
            yield Cell(quantity, model, f"{each} {layout}", 0.0, count, rows, icc)
    for alpha, model, steps in product((0.005, 0.1), shapes, (4, 12)):
        yield Cell("smallest_step", model, f"{steps} equal", 0.0, 40, 8, 0.3, alpha)


def _labels(layout: str, codes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Positives: every second row or group, or every fourth ("1:3"); "apart" where a group is of one class."""
    every = 4 if layout.endswith("1:3") else 2
    if layout.startswith("apart"):
        return codes % every == 0
    return (np.arange(len(codes)) - (np.cumsum(sizes) - sizes)[codes]) % every == 0


def _levels(cell: Cell, rng: Generator, codes: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Standard normal values [n], correlated within groups; where classes have their own levels, within each class of a group."""
    shared = codes if cell.layout != "own levels" else 2 * codes + labels
    return np.sqrt(cell.icc) * rng.standard_normal(2 * cell.groups)[shared] + np.sqrt(1.0 - cell.icc) * rng.standard_normal(len(codes))


def _scores(cell: Cell, rng: Generator, codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    levels = _levels(cell, rng, codes, labels)
    match cell.model:
        case "binormal":
            return levels + np.sqrt(2.0) * ndtri(cell.value) * labels
        case "wide positives":  # of twice the standard deviation
            return np.where(labels, 2.0 * levels + np.sqrt(5.0) * ndtri(cell.value), levels)
        case "exponential":  # of rate 1, the positives of rate 1 / AUROC - 1
            waits = -np.log(ndtr(-levels))
            return np.where(labels, waits / (1.0 / cell.value - 1.0), waits)
    raise ValueError(cell.model)


def _auroc(cell: Cell, rng: Generator, codes: np.ndarray, sizes: np.ndarray) -> Estimate:
    labels = _labels(cell.layout, codes, sizes)
    return auroc(_scores(cell, rng, codes, labels), labels, codes, alpha=cell.alpha)


def _auroc_difference(cell: Cell, rng: Generator, codes: np.ndarray, sizes: np.ndarray) -> Estimate:
    """Of two detectors of equal AUROC whose scores correlate by 0.5 and more; the true difference is 0."""
    labels = _labels(cell.layout, codes, sizes)
    shift = np.sqrt(2.0) * ndtri(cell.value) * labels
    one, two, three = (_levels(cell, rng, codes) for _ in range(3))
    return auroc_difference(np.sqrt(0.5) * (one + two) + shift, np.sqrt(0.5) * (one + three) + shift, labels, codes, alpha=cell.alpha)


@cache
def latent_correlation(value: float, icc: float) -> float:
    """The correlation of two normal variables that makes the events "below the `value` quantile" correlate by `icc`."""
    edge = float(ndtri(value))

    def excess(latent: float) -> float:
        both = multivariate_normal.cdf([edge, edge], cov=[[1.0, latent], [latent, 1.0]])
        return float((both - value**2) / (value * (1.0 - value)) - icc)

    return float(brentq(excess, 0.0, 0.9999))


def _rate(cell: Cell, rng: Generator, codes: np.ndarray, sizes: np.ndarray) -> Estimate:
    match cell.model:
        case "independent":
            hits = rng.random(len(codes)) < cell.value
        case "beta-binomial":
            hits = beta_binomial_hits(rng, codes, rate=cell.value, icc=cell.icc)
        case "probit":
            latent = latent_correlation(cell.value, cell.icc)
            shared = rng.standard_normal(cell.groups)[codes]
            hits = np.sqrt(latent) * shared + np.sqrt(1.0 - latent) * rng.standard_normal(len(codes)) < ndtri(cell.value)
        case "whole groups":  # a share `icc` of the groups is all true or all false
            whole = rng.random(cell.groups) < cell.icc
            alike = rng.random(cell.groups) < cell.value
            hits = np.where(whole[codes], alike[codes], rng.random(len(codes)) < cell.value)
        case _:
            raise ValueError(cell.model)
    return rate(hits, codes, alpha=cell.alpha)


def _values(cell: Cell, rng: Generator, codes: np.ndarray) -> np.ndarray:
    """Values of mean 0 and standard deviation 1."""
    levels = _levels(cell, rng, codes)
    if cell.model == "normal":
        return levels
    sigma = float(cell.model.removeprefix("lognormal "))
    mean_of, variance = np.exp(sigma**2 / 2), np.expm1(sigma**2) * np.exp(sigma**2)
    return (np.exp(sigma * levels) - mean_of) / np.sqrt(variance)


def _mean(cell: Cell, rng: Generator, codes: np.ndarray, sizes: np.ndarray) -> Estimate:
    return mean(_values(cell, rng, codes), codes, alpha=cell.alpha)


def _difference(estimator: Callable[..., Estimate]) -> Callable[..., Estimate]:
    def draw(cell: Cell, rng: Generator, codes: np.ndarray, sizes: np.ndarray) -> Estimate:
        labels = _labels(cell.layout, codes, sizes)
        return estimator(_values(cell, rng, codes) + cell.value * labels, labels, codes, alpha=cell.alpha)

    return draw


def _paired_difference(cell: Cell, rng: Generator, codes: np.ndarray, sizes: np.ndarray) -> Estimate:
    """Each pair's negative is noise, its positive that noise plus a difference of mean `value` that is drawn from the model."""
    rows = np.arange(len(codes))
    labels = rows % 2 == 0
    values = rng.standard_normal(len(codes) // 2)[rows // 2] + np.where(labels, cell.value + _values(cell, rng, codes), 0.0)
    return paired_difference(values, labels, rows // 2, codes, alpha=cell.alpha)


def _dose(cell: Cell, rng: Generator, codes: np.ndarray, sizes: np.ndarray) -> Estimate:
    """Steps between neighbouring strengths, half of them below 0, each drawn from the model with mean `value`; if "one least", the others' mean is 3 more.

    Of a sign reversal the steps below 0 add up to one change, and those above to the other: the least step is below.
    """
    count, _, means = cell.layout.partition(" ")
    half = int(count) // 2
    risen = [_values(cell, rng, codes) + cell.value + (3.0 if means == "one least" and step >= half else 0.0) for step in range(2 * half)]
    if means == "one least" and cell.quantity == "smallest_step":
        risen[1:half] = [step + 3.0 for step in risen[1:half]]
    effects = np.cumsum([rng.standard_normal(len(codes)), *risen], axis=0)
    strengths = tuple(float(dose) for dose in range(-half, half + 1) if dose)
    dose = Dose(np.delete(effects, half, axis=0), effects[half], strengths, codes, origin=True)
    return dose.estimate(cell.quantity, alpha=cell.alpha)


DRAWS = {
    "auroc": _auroc,
    "auroc difference": _auroc_difference,
    "rate": _rate,
    "mean": _mean,
    "mean_difference": _difference(mean_difference),
    "effect_size": _difference(effect_size),
    "paired_difference": _paired_difference,
    "slope": _dose,
    "smallest_step": _dose,
    "sign_reversal": _dose,
}


def truth(cell: Cell) -> float:
    """The true value of what is estimated."""
    return 0.0 if cell.quantity == "auroc difference" else cell.value
