"""Specs of detectors: what is to be learned, where and from what. Frozen, hashable, free of torch."""

import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from mi_audit.errors import PlanError, SuiteError
from mi_audit.plan.digest import Json, digest_of, sha256_of_file
from mi_audit.plan.places import At, Tokens
from mi_audit.plugins import active
from mi_audit.suites.prompt import Prompt
from mi_audit.suites.suite import Suite

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class FalsePositiveRate:
    """A threshold that at most this share of the negatives in `on` exceeds; it is frozen before any claim is read."""

    rate: float
    on: Suite

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        return {"kind": "false_positive_rate", "rate": self.rate, "on": describe_suite(self.on)}

    def __str__(self) -> str:
        return f"{self.rate:.3g} false positive rate on {self.on.name}"


@dataclass(frozen=True)
class FixedThreshold:
    """A threshold given as a number on the detector's own scale."""

    value: float

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        return {"kind": "fixed", "value": self.value}

    def __str__(self) -> str:
        return f"{self.value:g}"


Threshold = FalsePositiveRate | FixedThreshold | None


@dataclass(frozen=True)
class DetectorSpec(ABC):
    """What every detector answers, however it comes about. `method` and `fit` are None for one that was found elsewhere."""

    kind: ClassVar[Literal["probe", "direction", "sweep", "latent"]]

    name: str
    tokens: Tokens
    threshold: Threshold
    method: str | None
    fit: Suite | None

    @property
    @abstractmethod
    def point(self) -> str:
        """The hook point, by standard name."""

    @abstractmethod
    def places(self, n_layers: int, usable: Sequence[int | None]) -> tuple[At, ...]:
        """Where it reads in a model of `n_layers` blocks, or may read once its layer is chosen; layers are absolute and ascend.

        Args:
            n_layers: how many blocks the model has.
            usable: the layers at which the model has the hook point and it passed its self-check.

        Raises:
            PlanError: a layer that the model does not have, or too few to choose from.
        """

    def moved_to(self, at: At) -> "DetectorSpec":
        """The same detector at another place, its layer absolute.

        Raises:
            PlanError: it can only be where it is.
        """
        raise PlanError(f"{self.name}: a {self.kind} can only be where it is")

    @abstractmethod
    def _own(self) -> dict[str, Json]:
        """What only this kind has to say in its description."""

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest."""
        threshold = self.threshold.describe() if self.threshold else None
        return {"kind": self.kind, "name": self.name, **self._own(), "tokens": self.tokens.describe(), "threshold": threshold}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the description."""
        return digest_of(self.describe())

    @property
    def seen(self) -> tuple[tuple[str, Suite], ...]:
        """The suites that it sees before it can score, each with its use in words; no claim may be tested on their prompts or groups."""
        seen = [] if self.fit is None else [("it is fitted on", self.fit)]
        if isinstance(self.threshold, FalsePositiveRate):
            seen.append(("its threshold is calibrated on", self.threshold.on))
        return tuple(seen)

    @property
    def suites(self) -> tuple[Suite, ...]:
        """The suites that it sees before it can score."""
        return tuple(suite for _, suite in self.seen)

    @property
    def learning(self) -> tuple[tuple[Prompt, ...], ...]:
        """The prompts that pass through the model before it can score: of a suite that calibrates the negatives alone, of any other all."""
        calibrating = self.threshold.on if isinstance(self.threshold, FalsePositiveRate) else None
        return tuple(negatives_of(suite) if suite is calibrating else suite.prompts for suite in self.suites)


@dataclass(frozen=True)
class _Placed(DetectorSpec):
    """A detector whose place is declared."""

    at: At

    @property
    def point(self) -> str:
        """The hook point, by standard name."""
        return self.at.point

    def places(self, n_layers: int, usable: Sequence[int | None]) -> tuple[At, ...]:
        """Its one place; see `DetectorSpec.places`."""
        return (self.at.in_model(n_layers),)

    def moved_to(self, at: At) -> "DetectorSpec":
        """See `DetectorSpec.moved_to`."""
        return replace(self, at=at)


@dataclass(frozen=True)
class ProbeSpec(_Placed):
    """A linear probe to be fitted on the model under audit."""

    kind = "probe"

    method: str
    fit: Suite

    def _own(self) -> dict[str, Json]:
        return {"method": describe_method(self.method), "at": self.at.describe(), "fit": describe_suite(self.fit)}

    def __str__(self) -> str:
        return f"{self.name}: {self.method} probe, {self.at}, {self.tokens}"


@dataclass(frozen=True)
class DirectionSpec(_Placed):
    """A direction that was found elsewhere, read from a safetensors file, which counts by its content and not its path."""

    kind = "direction"

    file: Path
    file_digest: str

    def _own(self) -> dict[str, Json]:
        return {"file": self.file_digest, "at": self.at.describe()}

    def __str__(self) -> str:
        return f"{self.name}: direction from {self.file.name}, {self.at}, {self.tokens}"


def describe_suite(suite: Suite) -> dict[str, Json]:
    """A suite as the plan's digest sees it: its rows count through their digest."""
    return {"name": suite.name, "digest": suite.digest, "n": len(suite)}


def describe_method(method: str) -> Json:
    """A method as the plan's digest sees it: by name, and one from a plugin of another distribution also by the digest of its code."""
    plugin = active().probe_methods[method].plugin
    return method if plugin.built_in else {"name": method, "plugin": plugin.digest}


def negatives_of(suite: Suite) -> tuple[Prompt, ...]:
    """The prompts on which a detector should stay quiet: those not of the positive class.

    All of them, where the suite has one label, or none, and names no positive class.

    Raises:
        PlanError: the suite holds several labels and does not say which is positive.
    """
    labels = {prompt.label for prompt in suite}
    if suite.positive is None and len(labels) == 1 and not isinstance(next(iter(labels)), bool):
        return suite.prompts
    if not suite.has_labels:
        shown = ", ".join(sorted(str(label) for label in labels)[:5])
        raise PlanError(f"{suite.name} has the labels {shown}: which are negatives? Give mi.suite(…, positive=…), or a suite of negatives alone")
    return tuple(prompt for prompt, positive in zip(suite.prompts, suite.labels(), strict=True) if not positive)


def false_positive_rate(rate: float, *, on: Suite) -> FalsePositiveRate:
    """Set the threshold so that at most `rate` of the negatives in `on` exceed it.

    The threshold is the ⌈(1 − rate)(n + 1)⌉-th smallest score of the n negatives, as in split conformal prediction (Vovk et al. 2005), so that a new negative
    of the same kind exceeds it with probability ≤ rate. No claim may be tested on the same prompts or groups.

    Raises:
        PlanError: a rate outside (0, 0.5], or fewer negatives than can show it (n ≥ 1/rate − 1).
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 0.5:
        raise PlanError(f"mi.false_positive_rate({rate!r}, …): a rate is a number above 0 and at most 0.5")
    _require_suite(on, "mi.false_positive_rate(…, on=…)")
    negatives = len(negatives_of(on))
    least = math.ceil(1 / rate - 1 - 1e-9)
    if negatives < least:
        raise PlanError(f"mi.false_positive_rate({rate:g}, on={on.name}): a rate of {rate:g} needs at least {least} negatives, the suite has {negatives}")
    return FalsePositiveRate(float(rate), on)


def probe(
    name: str,
    *,
    method: str,
    at: At,
    fit: Suite,
    tokens: str | Tokens = "last",
    threshold: FalsePositiveRate | float | None = None,
) -> ProbeSpec:
    """Declare a linear probe.

    Args:
        name: how reports name it: lower-case letters, digits, `_` and `-`.
        method: `difference_of_means` (μ⁺ − μ⁻) or `mass_mean` (Σ⁻¹(μ⁺ − μ⁻), Σ within-class, Ledoit–Wolf shrinkage), both from Marks & Tegmark 2023
            (arXiv 2310.06824); `logistic`: L2-regularised logistic regression on standardised activations, its strength chosen by grouped cross-validation;
            or a name that a plugin offers.
        at: the hook point, from `mi.at`.
        fit: a labelled suite with both classes; no claim may be tested on its prompts or groups.
        tokens: `last`, `all`, `response`, `mi.span(…)` or `mi.last_of(…)`.
        threshold: `mi.false_positive_rate(…)`, or a number on the probe's own scale; needed for `recall`, `rate` and `accuracy`.

    Raises:
        PlanError: an argument is of the wrong kind, no active plugin offers the method, or the fit suite has no labels or only one class.
    """
    require_name(name, "mi.probe")
    methods = active().probe_methods
    if not isinstance(method, str) or method not in methods:
        raise PlanError(f"mi.probe({name!r}, method={method!r}): known methods are {', '.join(methods)}")
    _require_at(at, f"mi.probe({name!r}, at=…)")
    require_classes(fit, f"mi.probe({name!r}, fit=…)")
    frozen = frozen_threshold(threshold, f"mi.probe({name!r}, threshold=…)")
    return ProbeSpec(name=name, tokens=Tokens.of(tokens), threshold=frozen, method=method, fit=fit, at=at)


def direction(
    name: str,
    file: str | Path,
    *,
    at: At,
    tokens: str | Tokens = "last",
    threshold: FalsePositiveRate | float | None = None,
) -> DirectionSpec:
    """Declare a detector that projects on a direction found elsewhere.

    Args:
        name: how reports name it.
        file: a safetensors file with a float vector `direction` of the hook point's width and optionally `centre`; relative to the audit file.
        at: the hook point, from `mi.at`.
        tokens: as for `mi.probe`.
        threshold: as for `mi.probe`.

    Raises:
        PlanError: an argument is of the wrong kind, or the file is missing or too large.
    """
    require_name(name, "mi.direction")
    _require_at(at, f"mi.direction({name!r}, at=…)")
    caller = inspect.stack()[1].filename
    path = Path(file) if Path(file).is_absolute() else Path(caller).parent / file
    if path.suffix != ".safetensors":
        raise PlanError(f"mi.direction({name!r}, {str(file)!r}): only .safetensors files are read; save the vector with safetensors.numpy.save_file")
    if path.is_symlink() or not path.is_file():
        raise PlanError(f"mi.direction({name!r}, {str(file)!r}): no such file next to the audit file")
    if path.stat().st_size > 64 * 2**20:
        raise PlanError(f"mi.direction({name!r}, {str(file)!r}): the file is larger than 64 MiB, which no direction is")
    frozen, digest = frozen_threshold(threshold, f"mi.direction({name!r}, threshold=…)"), sha256_of_file(path)
    return DirectionSpec(name=name, tokens=Tokens.of(tokens), threshold=frozen, method=None, fit=None, at=at, file=path, file_digest=digest)


def frozen_threshold(threshold: object, where: str) -> Threshold:
    """The threshold as it is written in an audit file. Raises PlanError for anything but a rule, a finite number or None."""
    match threshold:
        case None | FalsePositiveRate():
            return threshold
        case bool():
            pass
        case int() | float() if math.isfinite(threshold):
            return FixedThreshold(float(threshold))
    raise PlanError(f"{where}: give mi.false_positive_rate(rate, on=suite) or a finite number, not {threshold!r}")


def require_name(name: object, where: str) -> None:
    """Raises PlanError for what is no detector's name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PlanError(f"{where}({name!r}, …): a detector's name is lower-case letters, digits, '_' and '-', starting with a letter, at most 64 long")


def _require_at(at: object, where: str) -> None:
    if not isinstance(at, At):
        raise PlanError(f"{where}: give mi.at(point, depth=…) or mi.at(point, layer=…), not {at!r}")


def require_classes(suite: object, where: str) -> None:
    """Raises PlanError unless `suite` is a labelled suite with both classes."""
    _require_suite(suite, where)
    assert isinstance(suite, Suite)
    try:
        one_class = suite.one_class()
    except SuiteError as error:
        raise PlanError(f"{where}: {error}") from error
    if one_class:
        raise PlanError(f"{where}: all prompts of {suite.name} have one label; a probe learns from both classes")


def _require_suite(suite: object, where: str) -> None:
    if not isinstance(suite, Suite):
        raise PlanError(f"{where}: give a suite made with mi.suite(…), not {suite!r}")
    if len(suite) == 0:
        raise PlanError(f"{where}: the suite {suite.name} is empty")
