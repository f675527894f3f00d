"""One run: its settings, its plan, the model, the judge and the evidence it leaves. Knows nothing of pytest."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mi_audit.auditor import Auditor
from mi_audit.config import USUAL_ALPHA, Settings
from mi_audit.errors import MiAuditError, PlanError
from mi_audit.judging.judge import Judge
from mi_audit.judging.results import AuditResult
from mi_audit.plan.measurements import ClaimSpec, EstimateSpec
from mi_audit.plan.plan import Plan, PlannedAudit
from mi_audit.stats.estimate import Estimate
from mi_audit.stats.verdict import Verdict
from mi_audit.worst import worst_prompts

if TYPE_CHECKING:
    from mi_audit.detectors.bench import Bench
    from mi_audit.model.loaded import LoadedModel


class Session:
    """A run from plan to evidence. `partial` collects the reasons for which it can't gate."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.started = datetime.now(UTC)
        self.seconds: dict[str, float] = {}
        self.partial: list[str] = []
        self.plan: Plan | None = None
        self.model: LoadedModel | None = None
        self.bench: Bench | None = None
        self._judge: Judge | None = None

    def fix_plan(self, audits: Sequence[PlannedAudit]) -> Plan:
        """Fix what will be decided; nothing is measured before it."""
        self.plan = Plan(tuple(_refuse_ambiguous(audits)), self.settings.alpha, self.settings.seed, self.settings.limit)
        if self.settings.limit is not None:
            self.partial.append(f"--audit-limit {self.settings.limit}")
        if self.settings.alpha > USUAL_ALPHA:
            self.partial.append(f"--audit-alpha {self.settings.alpha:g} is above {USUAL_ALPHA:g}")
        self.partial.extend(f"{audit.id} is unplanned: {audit.unplanned}" for audit in self.plan.audits if audit.unplanned)
        self._judge = Judge(self.plan, self._evaluate)
        return self.plan

    @property
    def judge(self) -> Judge:
        """Decides the plan's audits.

        Raises:
            PlanError: no plan was fixed yet.
        """
        if self._judge is None:
            raise PlanError("the run has no plan yet; audits are planned when collection ends")
        return self._judge

    def open_model(self) -> Auditor:
        """Load the model under audit and measure everything that the plan needs.

        Raises:
            MissingDependencyError: torch or transformers is not installed.
            ModelError: the model can't be found, trusted or loaded.
        """
        from mi_audit.loading import load_bench

        with self._timed("load model"):
            self.model, self.bench = load_bench(self.settings)
        if self.plan is not None:
            # What can't be measured is raised again in the audits that claim something of it; the others go on.
            with self._timed("forward passes"), suppress(MiAuditError):
                self.bench.prepare(self.plan.readings)
        return Auditor(self.bench.estimate, self.model.identity)

    def _evaluate(self, spec: EstimateSpec) -> Estimate:
        if self.bench is None:
            raise PlanError("the model is not loaded, so nothing can be estimated")
        with self._timed("estimates and controls"):
            return self.bench.estimate(spec)

    def worst_prompts(self, claim: ClaimSpec) -> tuple[str, ...]:
        """Ids of the prompts that speak most against a claim; none before the model was read."""
        return worst_prompts(claim, self.bench.read(claim.estimate.reading)) if self.bench is not None else ()

    def results(self) -> tuple[AuditResult, ...]:
        """Every planned audit's result, in the plan's order."""
        return self.judge.results()

    @cached_property
    def directory(self) -> Path:
        """Where the evidence goes."""
        if self.settings.out is not None:
            return self.settings.out
        model = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.settings.model).name).strip("-.") or "model"
        return Path("audit-results") / f"{self.started.astimezone():%Y-%m-%dT%H-%M-%S}-{model}"

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def exit_code(results: Sequence[AuditResult], partial: Sequence[str]) -> int:
    """0 passed; 1 a claim failed; 12 an audit could not run; 10 inconclusive and none failed; 13 partial.

    Where several hold the first in that order counts: a failed claim is a fact about the model that no other trouble removes.
    """
    verdicts = {result.verdict for result in results}
    for verdict, code in ((Verdict.FAIL, 1), (Verdict.ERROR, 12), (Verdict.INCONCLUSIVE, 10)):
        if verdict in verdicts:
            return code
    return 13 if partial else 0


def _refuse_ambiguous(audits: Sequence[PlannedAudit]) -> Iterator[PlannedAudit]:
    """Audits with one id, or detectors with one name and different specs, can't be told apart in evidence: a fault of the later one."""
    ids: set[str] = set()
    named: dict[str, str] = {}
    for audit in audits:
        faults = list(audit.faults)
        if audit.id in ids:
            faults.append(f"another audit has the id {audit.id}; rename the file or its folder")
        ids.add(audit.id)
        for claim in audit.claims:
            detector = claim.spec.estimate.reading.detector
            if named.setdefault(detector.name, detector.digest) != detector.digest:
                faults.append(f"{audit.file.name}:{claim.line}: another detector is called {detector.name!r} too; give each its own name")
        yield replace(audit, faults=tuple(dict.fromkeys(faults)))
