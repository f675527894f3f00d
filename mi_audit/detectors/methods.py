"""The methods of fitting a linear probe that are built in; what they need is imported when one is used, so that a plan knows their names without it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mi_audit.hookspecs import ProbeMethod, hookimpl

if TYPE_CHECKING:
    from mi_audit.detectors.linear import Fitter
    from mi_audit.stats.checks import Bools, Floats


@hookimpl
def mi_audit_probe_methods() -> Mapping[str, ProbeMethod]:
    """Difference of means, mass mean and logistic regression."""
    return {"difference_of_means": _difference_of_means, "mass_mean": _mass_mean, "logistic": _logistic}


def _difference_of_means(acts: "Floats", labels: "Bools", groups: tuple[str, ...]) -> "Fitter":
    from mi_audit.detectors.linear import DifferenceOfMeans

    return DifferenceOfMeans(acts)


def _mass_mean(acts: "Floats", labels: "Bools", groups: tuple[str, ...]) -> "Fitter":
    from mi_audit.detectors.linear import MassMean

    return MassMean(acts)


def _logistic(acts: "Floats", labels: "Bools", groups: tuple[str, ...]) -> "Fitter":
    from mi_audit.detectors.logistic import Logistic

    return Logistic(acts, labels, groups)
