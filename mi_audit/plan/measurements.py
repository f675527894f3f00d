"""Specs of measurements: a detector read on a suite, a quantity estimated from the reading, a claim made of the quantity."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeGuard

from mi_audit.plan.detectors import DetectorSpec, describe_suite
from mi_audit.plan.digest import Json, digest_of
from mi_audit.plan.steering import DoseSpec, SteerSpec
from mi_audit.suites.suite import Suite

Quantity = Literal["auroc", "recall", "rate", "accuracy", "mean", "mean_difference", "paired_difference", "effect_size"]

NEEDS_THRESHOLD: frozenset[Quantity] = frozenset({"recall", "rate", "accuracy"})
NEEDS_LABELS: frozenset[Quantity] = frozenset({"auroc", "recall", "accuracy", "mean_difference", "paired_difference", "effect_size"})
DISCRIMINATES: frozenset[Quantity] = frozenset({"auroc", "recall", "accuracy", "mean_difference", "paired_difference", "effect_size"})
"""Quantities that compare the two classes; a detector is shown to work by a claim on one of these, never by its silence."""

Op = Literal[">=", ">", "<=", "<"]


def is_op(text: str) -> TypeGuard[Op]:
    """Whether the text is a comparison that makes a claim."""
    return text in (">=", ">", "<=", "<")


@dataclass(frozen=True)
class ReadSpec:
    """A detector read on every prompt of a suite."""

    detector: DetectorSpec
    suite: Suite
    controls: bool = True

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        return {"detector": self.detector.digest, "suite": describe_suite(self.suite), "controls": self.controls}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the description."""
        return digest_of(self.describe())

    def __str__(self) -> str:
        return f"{self.detector.name} on {self.suite.name}"


Method = Literal["integrated_gradients"]
Baseline = Literal["space", "mean", "zeros"]
"""Where the path of integrated gradients starts: every token of the content replaced by a space, by the vocabulary's mean embedding, or by zeros."""


@dataclass(frozen=True)
class AttributionSpec:
    """The prompts of a reading that score highest, attributed to their tokens."""

    reading: ReadSpec
    method: Method = "integrated_gradients"
    baseline: Baseline = "space"

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        return {"reading": self.reading.describe(), "method": self.method, "baseline": self.baseline}

    def __str__(self) -> str:
        return f"{self.reading}: {self.method}, baseline {self.baseline}"


@dataclass(frozen=True)
class EstimateSpec:
    """A quantity to be estimated from a reading. `pairs` names the field that pairs prompts, for `paired_difference`."""

    reading: ReadSpec
    quantity: Quantity
    pairs: str | None = None

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        return {"reading": self.reading.describe(), "quantity": self.quantity, "pairs": self.pairs}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the description."""
        return digest_of(self.describe())

    def __str__(self) -> str:
        argument = f"pairs={self.pairs!r}" if self.pairs else ""
        return f"{self.reading}: {self.quantity}({argument})"


Measured = EstimateSpec | DoseSpec
"""A quantity of a reading, or of an experiment."""
Measurement = ReadSpec | SteerSpec
"""A reading, or an experiment: what `samples.parquet` calls a measurement."""


@dataclass(frozen=True)
class ClaimSpec:
    """What is claimed: a quantity on one side of a literal threshold, or of what the null gives (its excess over that is then on one side of 0)."""

    estimate: Measured
    op: Op
    threshold: float

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        return {"estimate": self.estimate.describe(), "op": self.op, "threshold": self.threshold}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the description."""
        return digest_of(self.describe())

    def __str__(self) -> str:
        over_null = isinstance(self.estimate, DoseSpec) and self.estimate.over_null
        return f"{self.estimate} {self.op} {f'null.{self.estimate.quantity}()' if over_null else f'{self.threshold:g}'}"
