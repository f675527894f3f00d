"""A probe whose layer is chosen by a sweep over many. Free of torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from mi_audit.errors import PlanError, SuiteError
from mi_audit.plan.detectors import DetectorSpec, ProbeSpec, describe_method, describe_suite, require_classes
from mi_audit.plan.digest import Json
from mi_audit.plan.places import At, at
from mi_audit.suites.suite import Suite

SHARE: Final = Fraction(1, 3)
"""Of the fit suite's groups, how many choose the layer where no validation suite is given."""

_LEAST_GROUPS: Final = 3
_LEAST_OF_CLASS: Final = 2


@dataclass(frozen=True)
class SweepSpec(DetectorSpec):
    """A linear probe at whichever of several layers reads best on validation groups. `over` names the places, ascending, or all there are."""

    kind = "sweep"

    method: str
    fit: Suite
    at_point: str
    over: tuple[At, ...] | Literal["all"]
    validation: Suite | None

    @property
    def point(self) -> str:
        """The hook point, by standard name."""
        return self.at_point

    def places(self, n_layers: int, usable: Sequence[int | None]) -> tuple[At, ...]:
        """Every place that is swept; see `DetectorSpec.places`."""
        if self.over == "all":
            if len(usable) < 2:
                raise PlanError(f"{self.name}: {self.point} can be read at {len(usable)} layers of this model, too few to sweep over; use the probe itself")
            return tuple(At(self.point, layer=layer) for layer in usable)
        chosen: dict[At, At] = {}
        for asked in self.over:
            other = chosen.setdefault(asked.in_model(n_layers), asked)
            if other is not asked:
                raise PlanError(f"{self.name} is swept over {other} and {asked}, which in this model of {n_layers} layers are one; leave one out")
        return tuple(chosen)

    def moved_to(self, at: At) -> ProbeSpec:
        """Its probe at one place."""
        return ProbeSpec(name=self.name, tokens=self.tokens, threshold=self.threshold, method=self.method, fit=self.fit, at=at)

    def parts(self, seed: int) -> tuple[Suite, Suite]:
        """What the probe is fitted on at every layer, and what scores it there; without a validation suite these are two parts of the fit suite.

        The parts are cut by group, stratified by class, in an order that depends on the run's seed and this spec alone.

        Raises:
            PlanError: too few groups on either side for a layer to be chosen by them.
        """
        if self.validation:
            _require_groups(self.validation, f"{self.name}: its layer is chosen on {self.validation.name}, which", "add groups to it")
            return self.fit, self.validation
        fix = f"add groups to {self.fit.name}, or give a suite of its own: mi.sweep(…, validation=suite)"
        try:
            parts = self.fit.divide(SHARE, f"{seed}|{self.digest}")
        except SuiteError as error:
            raise PlanError(f"{self.name}: {error}; {fix}") from error
        for use, part in zip(("it is fitted on what is left of", "its layer is chosen on a third of"), parts, strict=True):
            _require_groups(part, f"{self.name}: {use} {self.fit.name}'s groups, which", fix)
        return parts

    @property
    def seen(self) -> tuple[tuple[str, Suite], ...]:
        """As of a probe, and the suite on which the layer is chosen."""
        return (*super().seen, *([("its layer is chosen on", self.validation)] if self.validation else []))

    def _own(self) -> dict[str, Json]:
        return {
            "method": describe_method(self.method),
            "point": self.point,
            "over": "all" if self.over == "all" else [place.describe() for place in self.over],
            "fit": describe_suite(self.fit),
            "validation": describe_suite(self.validation) if self.validation else None,
        }

    def __str__(self) -> str:
        places = "all layers" if self.over == "all" else f"{len(self.over)} places"
        on = self.validation.name if self.validation else "a third of the fitted groups"
        return f"{self.name}: {self.method} probe, {self.point} swept over {places} and chosen on {on}, {self.tokens}"


FittedSpec = ProbeSpec | SweepSpec
"""A detector that is learned from labels on the model under audit."""


def sweep(probe: ProbeSpec, *, over: Literal["all"] | Iterable[float] = "all", validation: Suite | None = None) -> SweepSpec:
    """Declare a probe whose layer is chosen on validation groups; it is used wherever a probe is, under the probe's own name.

    The probe's method is fitted at every place, all of which are read in one forward pass over the fit suite. The place with the best AUROC on the validation
    groups is taken (of equals the earliest layer), the probe is fitted there to the whole fit suite, and its threshold is calibrated there. The whole curve is
    part of the evidence. The AUROC of the chosen layer on the validation groups is the best of many, and so tends to be too high: claim on other groups.

    A reading stays a fair test. The choice uses no label of what is read, so given the choice those labels are exchangeable under the null, and the interval is
    that of a detector that was fixed beforehand. The nulls are refitted at the chosen layer alone: their labels are shuffled where they are read too, so what a
    good choice adds is a better detector, never a better null.

    Args:
        probe: from `mi.probe`. Its `at` names the hook point; the layer or depth in it is replaced.
        over: "all" layers at which the model has the hook point and it passed its self-check, or two places at least: depths from 0 to 1 (floats), or layers
            (whole numbers).
        validation: a labelled suite that shares no prompt or group with the fit and calibration suites, and counts as seen: no claim may be tested on it. By
            default a third of the fit suite's groups, stratified by class and drawn by the run's seed.

    Raises:
        PlanError: an argument is of the wrong kind, places repeat, or there are too few groups to choose a layer by.
    """
    if not isinstance(probe, ProbeSpec):
        raise PlanError(f"mi.sweep({probe!r}, …): the first argument is a probe made with mi.probe(…); nothing else is fitted anew at every layer")
    if probe.point == "embed":
        raise PlanError(f"mi.sweep({probe.name}, …): the hook point 'embed' has no layers to sweep over; give the probe another, e.g. mi.at('resid_post', …)")
    if validation is not None:
        require_classes(validation, f"mi.sweep({probe.name}, validation=…)")
    spec = SweepSpec(
        name=probe.name,
        tokens=probe.tokens,
        threshold=probe.threshold,
        method=probe.method,
        fit=probe.fit,
        at_point=probe.point,
        over="all" if isinstance(over, str) and over == "all" else _places(probe, over),
        validation=validation,
    )
    spec.parts(0)
    return spec


def _places(probe: ProbeSpec, over: object) -> tuple[At, ...]:
    where = f"mi.sweep({probe.name}, over={over!r})"
    if isinstance(over, str) or not isinstance(over, Iterable):
        raise PlanError(f"{where}: give 'all', depths such as (0.25, 0.5, 0.75), or layers such as range(4, 12)")
    given = tuple(over)
    places = [at(probe.point, depth=place) if isinstance(place, float) else at(probe.point, layer=place) for place in given]
    if len({place.layer is None for place in places}) > 1:
        raise PlanError(f"{where}: depths (0.5, 1.0) and layers (8, 16) are mixed; give one kind")
    if len(places) < 2 or len(set(places)) < len(places):
        raise PlanError(f"{where}: give two different places at least, and none twice")
    return tuple(sorted(places, key=lambda place: (place.layer or 0, place.depth or 0.0)))


def _require_groups(suite: Suite, what: str, fix: str) -> None:
    groups = set(suite.groups())
    of_class = [len({group for group, label in zip(suite.groups(), suite.labels(), strict=True) if label is side}) for side in (True, False)]
    if len(groups) < _LEAST_GROUPS or min(of_class) < _LEAST_OF_CLASS:
        raise PlanError(
            f"{what} has {len(groups)} groups, {of_class[0]} with positives and {of_class[1]} with negatives; it takes {_LEAST_GROUPS} groups, and"
            f" {_LEAST_OF_CLASS} with each class; {fix}"
        )
