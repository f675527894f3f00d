"""From a method's name to its fitter, which is held to what a fitter promises."""

import numpy as np

from mi_audit.detectors.linear import Directions, Fitter
from mi_audit.errors import DetectorError
from mi_audit.hookspecs import ProbeMethod
from mi_audit.plugins import Offer, active
from mi_audit.stats.checks import Bools, Floats


def fitter(method: str, acts: Floats, labels: Bools, groups: tuple[str, ...]) -> Fitter:
    """Prepare a method on activations [n, d] in float64, labels [n] and groups [n].

    The same inputs give the same fitter: no method draws random numbers. Of those built in only `logistic` looks at labels and groups here, to choose its
    strength.

    Raises:
        DetectorError: too few groups for the method, or no method of that name is active.
        PluginError: a plugin's method failed.
    """
    methods = active().probe_methods
    if method not in methods:
        raise DetectorError(f"no method is called {method!r}; those active are {', '.join(methods)}")
    offer = methods[method]
    with offer.blamed():
        return _Held(offer, offer.value(acts, labels, groups), acts.shape[1])


class _Held:
    """A fitter whose directions have the shapes that they must have, and are finite."""

    def __init__(self, offer: Offer[ProbeMethod], fitter: Fitter, width: int) -> None:
        self._offer, self._fitter, self._width = offer, fitter, width
        self.regularisation = fitter.regularisation

    def fit(self, labels: Bools) -> Directions:
        """See `Fitter.fit`."""
        with self._offer.blamed():
            found = self._fitter.fit(labels.copy())
            shapes = {"mean": (self._width,), "weights": (len(labels), self._width), "intercepts": (len(labels),)}
            for name, shape in shapes.items():
                array = getattr(found, name)
                if array.shape != shape or array.dtype != np.float64 or not np.isfinite(array).all():
                    raise ValueError(f"its {name} are {array.dtype} of shape {array.shape}; finite float64 of shape {shape} was expected")
        return found
