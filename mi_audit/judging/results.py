"""What was decided of an audit and of a run."""

from dataclasses import dataclass

from mi_audit.plan.plan import PlannedAudit
from mi_audit.plan.tracing import TracedClaim
from mi_audit.stats.claim import Claim
from mi_audit.stats.verdict import Verdict


@dataclass(frozen=True)
class DecidedClaim:
    """A planned claim and what the data say of it."""

    planned: TracedClaim
    claim: Claim


@dataclass(frozen=True)
class AuditResult:
    """The worst of an audit's claims, or the error that kept it from being decided."""

    audit: PlannedAudit
    claims: tuple[DecidedClaim, ...] = ()
    error: str | None = None

    @property
    def verdict(self) -> Verdict:
        """ERROR with an error, else the worst of the claims."""
        if self.error is not None:
            return Verdict.ERROR
        return Verdict.worst([decided.claim.verdict for decided in self.claims])
