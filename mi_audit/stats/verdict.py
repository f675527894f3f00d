"""The four verdicts, ordered from best to worst."""

from enum import StrEnum
from typing import Self


class Verdict(StrEnum):
    """What is said of a claim or an audit.

    PASS: the whole interval is on the claimed side. INCONCLUSIVE: the data decide neither way, or a condition of deciding is missing.
    FAIL: the whole interval is on the other side. ERROR: the tool, the audit file or the machine is at fault; it says nothing about the model.
    """

    PASS = "PASS"
    INCONCLUSIVE = "INCONCLUSIVE"
    FAIL = "FAIL"
    ERROR = "ERROR"

    @property
    def severity(self) -> int:
        """Rank from 0 (PASS) to 3 (ERROR)."""
        return list(type(self)).index(self)

    @classmethod
    def worst(cls, verdicts: "list[Self]") -> "Verdict":
        """The worst of the verdicts; of none it is ERROR, since nothing claimed is nothing shown."""
        return max(verdicts, key=lambda verdict: verdict.severity, default=cls.ERROR)
