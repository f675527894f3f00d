"""Every array and level is checked here before anything is computed from it."""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mi_audit.errors import StatisticsError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Codes = NDArray[np.intp]
_Array = TypeVar("_Array", bound=NDArray[np.generic])


@dataclass(frozen=True, eq=False)
class Clusters:
    """Rows numbered by group: `codes` [n] in 0 .. count - 1, `sizes` [count] rows in each."""

    codes: Codes
    sizes: Floats

    @property
    def count(self) -> int:
        """The number of groups."""
        return len(self.sizes)

    @property
    def mean_size(self) -> float:
        """The size of the group in which a row finds itself, on average: sum of squares over sum. It is 1 only where every row is its own group."""
        return float((self.sizes @ self.sizes) / self.sizes.sum())

    @property
    def effective_count(self) -> float:
        """The number of groups of equal size that would count as much: rows over `mean_size`."""
        return float(self.sizes.sum()) / self.mean_size

    def sums(self, values: Floats) -> Floats:
        """The sum of `values` [n] within each group, [count]."""
        return np.bincount(self.codes, weights=values, minlength=self.count).astype(np.float64, copy=False)

    def sums_over(self, rows: Codes, values: Floats) -> Floats:
        """The sum within each group of `values` that belong to some `rows` only, [count]."""
        return np.bincount(self.codes[rows], weights=values, minlength=self.count).astype(np.float64, copy=False)


def checked_alpha(alpha: float) -> float:
    """The one-sided level, in (0, 0.5).

    Raises:
        StatisticsError: it is not a number strictly between 0 and 0.5.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0.0 < alpha < 0.5:
        raise StatisticsError(f"alpha must be a number strictly between 0 and 0.5 (one-sided; the default is 0.025), got {alpha!r}.")
    return float(alpha)


def checked_values(name: str, values: ArrayLike) -> Floats:
    """`values` as a 1-D float64 array of at least one finite number.

    Raises:
        StatisticsError: wrong shape or type, empty, or a NaN or infinity in it (the first is named by its row).
    """
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "fiu":
        raise StatisticsError(f"{name} must be a non-empty 1-D array of numbers, got shape {array.shape} of {array.dtype}.")
    floats = array.astype(np.float64, copy=False)
    finite = np.isfinite(floats)
    if not finite.all():
        row = int(np.argmin(finite))
        raise StatisticsError(
            f"{name}[{row}] is {floats[row]}: no quantity is defined on values that are not finite. Find where the model or the detector made it."
        )
    return floats


def checked_flags(name: str, flags: ArrayLike, n: int | None = None) -> Bools:
    """`flags` as a 1-D boolean array, of length `n` where given.

    Raises:
        StatisticsError: wrong shape, type or length, or empty.
    """
    array = np.asarray(flags)
    if array.ndim != 1 or array.size == 0 or array.dtype != np.bool_:
        raise StatisticsError(f"{name} must be a non-empty 1-D array of booleans, got shape {array.shape} of {array.dtype}.")
    return _of_length(name, array, n)


def checked_clusters(groups: ArrayLike, n: int, name: str = "groups") -> Clusters:
    """Number the groups of `n` rows; names are strings or integers.

    Raises:
        StatisticsError: wrong shape, type or length.
    """
    array = np.asarray(groups)
    if array.dtype.kind == "O" and all(isinstance(group, str) for group in array.ravel()):
        array = array.astype(np.str_)
    if array.ndim != 1 or array.dtype.kind not in "Uiu":
        raise StatisticsError(f"{name} must be a 1-D array of strings, got shape {array.shape} of {array.dtype}. A row without a group is a group of its own.")
    _, codes = np.unique(_of_length(name, array, n), return_inverse=True)
    return Clusters(codes=codes, sizes=np.bincount(codes).astype(np.float64))


def checked_both_classes(labels: Bools) -> tuple[int, int]:
    """The number of positives and of negatives.

    Raises:
        StatisticsError: one of them is 0.
    """
    positives = int(np.count_nonzero(labels))
    negatives = len(labels) - positives
    if not positives or not negatives:
        missing = "positive" if not positives else "negative"
        raise StatisticsError(f"There is no {missing} prompt among the {len(labels)}: what tells two classes apart is undefined on one. Add {missing} prompts.")
    return positives, negatives


def checked_number(name: str, value: float, low: float, high: float) -> float:
    """A number strictly between `low` and `high`.

    Raises:
        StatisticsError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not low < value < high:
        raise StatisticsError(f"{name} must be a number between {low:g} and {high:g} (both excluded), got {value!r}.")
    return float(value)


def _of_length(name: str, array: _Array, n: int | None) -> _Array:
    if n is not None and len(array) != n:
        raise StatisticsError(f"{name} has {len(array)} rows where {n} were expected.")
    return array
