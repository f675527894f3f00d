"""The exit code of a run: what a gate acts on."""

from collections.abc import Iterable
from typing import Final

from mi_audit.stats.verdict import Verdict

PASSED: Final = 0
FAILED: Final = 1
INCONCLUSIVE: Final = 10
EVIDENCE_FAILED: Final = 11
NOT_RUN: Final = 12
PARTIAL: Final = 13


def exit_code(audits: Iterable[Verdict], overall: Verdict, partial: Iterable[str]) -> int:
    """1 an audit failed; 12 an audit, or an audit file, could not run; 10 inconclusive; 13 partial; 0 passed.

    Where several hold the first in that order counts: a failed claim is a fact about the model that no other trouble removes. 11 is for a run whose evidence
    could not be written, which no evidence can say.
    """
    worst = {overall, *audits}
    for verdict, code in ((Verdict.FAIL, FAILED), (Verdict.ERROR, NOT_RUN), (Verdict.INCONCLUSIVE, INCONCLUSIVE)):
        if verdict in worst:
            return code
    return PARTIAL if any(True for _ in partial) else PASSED
