"""A run as one process sees it: its settings, its plan, the model and the judge. Knows nothing of pytest, nor of evidence."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from mi_audit.auditor import Auditor
from mi_audit.config import USUAL_ALPHA, Settings
from mi_audit.errors import MiAuditError, PlanError
from mi_audit.judging.judge import Judge
from mi_audit.plan.measurements import AttributionSpec, ClaimSpec, Measured, ReadSpec
from mi_audit.plan.plan import Plan, PlannedAudit
from mi_audit.plan.steering import DoseSpec
from mi_audit.stats.estimate import Estimate
from mi_audit.worst import worst_prompts

if TYPE_CHECKING:
    from mi_audit.causal.laboratory import Laboratory
    from mi_audit.detectors.bench import Bench
    from mi_audit.model.audited import AuditedModel


class Session:
    """What one process does of a run. `partial` collects the reasons for which the run can't gate."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.seconds: dict[str, float] = {}
        self.partial: list[str] = []
        self.plan: Plan | None = None
        self.model: AuditedModel | None = None
        self.bench: Bench | None = None
        self.lab: Laboratory | None = None
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
        from mi_audit.loading import load_laboratory

        with self._timed("load model"):
            self.model, self.bench, self.lab = load_laboratory(self.settings)
        if self.plan is not None:
            self.lab.expect(self.plan.experiments)
            with self._timed("forward passes"):
                self._measure(self.bench, self.plan)
        if (failure := self.model.failure) is not None:
            self.model = self.bench = self.lab = None  # nothing that was known of it stands
            raise failure
        return Auditor(self._evaluate, self.bench.attribute, self.model.identity)

    def _measure(self, bench: "Bench", plan: Plan) -> None:
        """Measure all that the plan needs. What can't be measured is raised again in the audits that claim something of it.

        The others are then read one by one in the plan's order, whichever of them this process goes on to judge, so that all processes form equal batches.
        """
        try:
            bench.prepare(plan.readings, plan.detectors)
        except MiAuditError:
            for reading in plan.readings:
                with suppress(MiAuditError):
                    bench.read(reading)

    def _evaluate(self, spec: Measured) -> Estimate:
        if self.lab is None:
            raise PlanError("the model is not loaded, so nothing can be estimated")
        with self._timed("experiments" if isinstance(spec, DoseSpec) else "estimates and controls"):
            return self.lab.estimate(spec)

    def worst_prompts(self, claim: ClaimSpec) -> tuple[str, ...]:
        """Ids of the prompts that speak most against a claim; none before the model was read."""
        return worst_prompts(claim, self.bench, self.lab) if self.bench is not None and self.lab is not None else ()

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def _refuse_ambiguous(audits: Sequence[PlannedAudit]) -> Iterator[PlannedAudit]:
    """What can't be told apart in evidence is a fault of the later one: audits with one id, detectors with one name and different specs, attributions of one
    reading from different baselines."""
    ids: set[str] = set()
    named: dict[str, str] = {}
    attributed: dict[ReadSpec, AttributionSpec] = {}
    for audit in audits:
        faults = list(audit.faults)
        if audit.id in ids:
            faults.append(f"another audit has the id {audit.id}; rename the file or its folder")
        ids.add(audit.id)
        for claim in audit.claims:
            detector = claim.spec.estimate.reading.detector
            if named.setdefault(detector.name, detector.digest) != detector.digest:
                faults.append(f"{audit.file.name}:{claim.line}: another detector is called {detector.name!r} too; give each its own name")
        for spec in audit.attributions:
            if (other := attributed.setdefault(spec.reading, spec)) != spec:
                faults.append(f"the same reading is attributed from the baseline {other.baseline!r} too, here from {spec.baseline!r}; use one of them")
        yield replace(audit, faults=tuple(dict.fromkeys(faults)))
