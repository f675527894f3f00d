"""From a method's name to its fitter."""

from mi_audit.detectors.linear import DifferenceOfMeans, Fitter, MassMean
from mi_audit.detectors.logistic import Logistic
from mi_audit.plan.detectors import Method
from mi_audit.stats.checks import Bools, Floats


def fitter(method: Method, acts: Floats, labels: Bools, groups: tuple[str, ...]) -> Fitter:
    """Prepare a method on activations [n, d] in float64, labels [n] and groups [n].

    The same inputs give the same fitter: no method draws random numbers. Only `logistic` looks at labels and groups here, to choose its strength.

    Raises:
        DetectorError: too few groups for the method.
    """
    match method:
        case "difference_of_means":
            return DifferenceOfMeans(acts)
        case "mass_mean":
            return MassMean(acts)
        case "logistic":
            return Logistic(acts, labels, groups)
