"""What a detector and its controls scored on a suite."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mi_audit.plan.measurements import ReadSpec
from mi_audit.stats.checks import Bools, Floats
from mi_audit.suites.suite import Suite

DETECTOR: Final = "detector"
NULL: Final = "null: "
BASELINE: Final = "baseline: "


@dataclass(frozen=True, eq=False)
class Arm:
    """The scores of one detector, of a baseline, or of every draw of a null: `values` [draws, n]; `thresholds` [draws], each draw's own, or None.

    `labels` [draws, n] are those that each draw is held against, where they are not the reading's own: a null of shuffled labels shuffles these too.
    """

    name: str
    values: Floats
    thresholds: Floats | None = None
    labels: Bools | None = None


@dataclass(frozen=True, eq=False)
class ReadingData:
    """A reading: per prompt of `suite` (what was read, after any limit) its score by the detector and, in the other arms, by its controls.

    `arms` starts with the detector's own; names of the others start with `NULL` or `BASELINE`. `token_index` [n] is the position read, or the last of those
    averaged; `excluded_tokens` counts the attention sinks that were left out of means.
    """

    spec: ReadSpec
    suite: Suite
    arms: tuple[Arm, ...]
    token_index: NDArray[np.int64]
    excluded_tokens: int

    @property
    def values(self) -> Floats:
        """The detector's scores [n]."""
        values: Floats = self.arms[0].values[0]
        return values

    @property
    def threshold(self) -> float | None:
        """The detector's frozen threshold."""
        thresholds = self.arms[0].thresholds
        return None if thresholds is None else float(thresholds[0])

    @property
    def ids(self) -> tuple[str, ...]:
        """Each prompt's id."""
        return self.suite.ids()

    @property
    def digests(self) -> tuple[str, ...]:
        """Each prompt's digest."""
        return tuple(prompt.digest for prompt in self.suite)

    @property
    def groups(self) -> NDArray[np.str_]:
        """Each prompt's group [n]."""
        return np.asarray(self.suite.groups(), dtype=np.str_)

    @property
    def labels(self) -> Bools | None:
        """Whether each prompt is of the positive class [n]; None for a suite without labels."""
        return np.asarray(self.suite.labels(), dtype=np.bool_) if self.suite.has_labels else None

    def pairs(self, field: str) -> NDArray[np.str_]:
        """Each prompt's pair [n], by the field that names it. Raises SuiteError for a prompt without the field."""
        return np.asarray([str(prompt.field(field)) for prompt in self.suite], dtype=np.str_)

    def of_kind(self, prefix: str) -> tuple[Arm, ...]:
        """The arms whose names start with `NULL` or `BASELINE`."""
        return tuple(arm for arm in self.arms if arm.name.startswith(prefix))
