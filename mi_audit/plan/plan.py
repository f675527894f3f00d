"""The plan of a run: every audit, every claim with its literal threshold, and what passes through the model for them, digested before the run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mi_audit.plan.audit import AuditMark
from mi_audit.plan.detectors import DetectorSpec
from mi_audit.plan.digest import Json, digest_of
from mi_audit.plan.measurements import DISCRIMINATES, NEEDS_THRESHOLD, AttributionSpec, ClaimSpec, Measurement, ReadSpec
from mi_audit.plan.steering import DoseSpec, SteerSpec
from mi_audit.plan.tracing import TracedClaim
from mi_audit.stats.claim import needs_null
from mi_audit.suites.suite import Suite


@dataclass(frozen=True)
class PlannedAudit:
    """One audit as planned. With a fault it can't run; with an `unplanned` reason it runs but can't gate."""

    id: str
    file: Path
    function: str
    source_digest: str
    mark: AuditMark
    doc: str
    claims: tuple[TracedClaim, ...] = ()
    attributions: tuple[AttributionSpec, ...] = ()
    faults: tuple[str, ...] = ()
    unplanned: str | None = None

    @property
    def title(self) -> str:
        """One line for people."""
        return self.mark.title or self.function.removeprefix("audit_").replace("_", " ")

    def describe(self) -> dict[str, Json]:
        """JSON-ready description, part of the plan's digest; lines and paths don't count."""
        return {
            "id": self.id,
            "source": self.source_digest,
            "mark": self.mark.describe(),
            "claims": [claim.spec.describe() for claim in self.claims],
            "attributions": [spec.describe() for spec in self.attributions],
            "faults": list(self.faults),
            "unplanned": self.unplanned,
        }


@dataclass(frozen=True)
class Plan:
    """Every audit of a run, in order, and the numbers that all of them share."""

    audits: tuple[PlannedAudit, ...]
    alpha: float
    seed: int
    limit: int | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what will be decided and how. Equal on every machine; changes with any threshold, suite row, spec or audit source."""
        return digest_of({"audits": [audit.describe() for audit in self.audits], "alpha": self.alpha, "seed": self.seed, "limit": self.limit})

    @property
    def claims(self) -> Iterator[tuple[PlannedAudit, ClaimSpec]]:
        """Every claim of the audits that can run, with its audit."""
        return ((audit, claim.spec) for audit in self.audits if not audit.faults for claim in audit.claims)

    @property
    def readings(self) -> tuple[ReadSpec, ...]:
        """Every reading that a claim rests on, once each, in order of first use."""
        return tuple(dict.fromkeys(claim.estimate.reading for _, claim in self.claims if isinstance(claim.estimate.reading, ReadSpec)))

    @property
    def experiments(self) -> tuple[SteerSpec, ...]:
        """Every experiment that a claim rests on, once each, in order of first use."""
        return tuple(dict.fromkeys(claim.estimate.reading for _, claim in self.claims if isinstance(claim.estimate, DoseSpec)))

    @property
    def neutral(self) -> tuple[Suite, ...]:
        """Every suite on which a side effect is measured, once each, in order of first use."""
        found = (claim.estimate.neutral for _, claim in self.claims if isinstance(claim.estimate, DoseSpec))
        return tuple(dict.fromkeys(suite for suite in found if suite is not None))

    @property
    def detectors(self) -> tuple[DetectorSpec, ...]:
        """Every detector that a claim rests on, once each, in order of first use."""
        own = [claim.estimate.reading.detector for _, claim in self.claims]
        return tuple(dict.fromkeys([*own, *(spec.effect.detector for spec in self.experiments if spec.effect.detector is not None)]))

    @property
    def forward_prompts(self) -> int:
        """How many distinct prompts pass through the model; each passes once, whatever the number of detectors."""
        learning = [prompts for detector in self.detectors for prompts in detector.learning]
        measured: list[Measurement] = [*self.readings, *self.experiments]
        read = [each.suite.prompts for each in measured]
        neutral = [suite.one_per_group().prompts for suite in self.neutral]
        return len({prompt.digest for prompts in (*learning, *read, *neutral) for prompt in prompts})

    def instruments_of(self, detector: DetectorSpec) -> tuple[tuple[PlannedAudit, ClaimSpec], ...]:
        """The claims about the instrument that speak of this detector."""
        return tuple((audit, claim) for audit, claim in self.claims if audit.mark.about == "instrument" and claim.estimate.reading.detector == detector)


def missing_instrument(claim: ClaimSpec, instruments: Iterable[ClaimSpec]) -> str | None:
    """What no claim about the instrument shows, even if all pass, for a claim about the model to rest on them; None if nothing is missing.

    The detector must tell the classes apart at all, which its silence never shows. A claim that it stays under its threshold needs the
    threshold to be one that it exceeds where it should, and a claim that it exceeds it one that it stays under where it should: an AUROC knows of no
    threshold. A claim that an experiment changes little needs one to change much: of a push that moves nothing anywhere nothing follows.
    """
    instruments = tuple(instruments)
    shown = {(one.estimate.quantity, one.op[0]) for one in instruments}
    name = claim.estimate.reading.detector.name
    if not any((quantity, ">") in shown for quantity in DISCRIMINATES):
        return f"no claim about the instrument in this run shows that {name} tells its classes apart, so its reading says nothing of the model"
    if isinstance(claim.estimate, DoseSpec):
        return _missing_handle(claim, claim.estimate, instruments)
    if claim.estimate.quantity not in NEEDS_THRESHOLD or ("accuracy", ">") in shown:
        return None
    if claim.op[0] == "<" and ("recall", ">") not in shown:
        return (
            f"no claim about the instrument in this run shows that {name} ever exceeds its threshold (recall() >= …), so its silence says nothing of the model"
        )
    if claim.op[0] == ">" and ("rate", "<") not in shown:
        return f"no claim about the instrument in this run shows that {name} stays quiet elsewhere (rate() <= …), so its firing says nothing of the model"
    return None


def _missing_handle(claim: ClaimSpec, dose: DoseSpec, instruments: Iterable[ClaimSpec]) -> str | None:
    """As `missing_instrument`, of a claim on an experiment."""
    name = dose.reading.detector.name
    if dose.reading.effect.detector is not None:
        return f"its effect is the score of {dose.reading.effect.detector.name}, which says nothing of how the model behaves; measure what it says"
    if needs_null(dose.quantity, claim.op, claim.threshold) or any(_pushes(one) for one in instruments):
        return None
    shows = f"shows that {name} moves what the model says (slope() > null.slope(), …)"
    return f"no claim about the instrument in this run {shows}, so that it moves little says nothing"


def _pushes(claim: ClaimSpec) -> bool:
    """Whether it claims an effect on what the model says. Its own score a direction always moves."""
    spec = claim.estimate
    return isinstance(spec, DoseSpec) and spec.reading.effect.detector is None and needs_null(spec.quantity, claim.op, claim.threshold)
