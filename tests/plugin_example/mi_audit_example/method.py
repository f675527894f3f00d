"""`method="difference_of_medians"`: as the difference of means, and less moved by outliers."""

import numpy as np

from mi_audit.detectors.linear import Directions
from mi_audit.errors import DetectorError


class DifferenceOfMedians:
    regularisation = None

    def __init__(self, acts):
        self._acts = acts

    def fit(self, labels):
        weights = np.array([np.median(self._acts[one], axis=0) - np.median(self._acts[~one], axis=0) for one in labels])
        if not weights.any(axis=1).all():
            raise DetectorError("the two classes have the same median activation, so their difference has no direction")
        return Directions(self._acts.mean(axis=0), weights, np.zeros(len(labels)))
