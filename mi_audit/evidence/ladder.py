"""How far a detector got on the evidence ladder: computed from the claims of a run by fixed criteria, never declared."""

from typing import Literal

from mi_audit.evidence.fields import Digest, Name, Record, Text


class RungRecord(Record):
    """One rung."""

    name: Literal["read", "selective", "causal", "general", "mechanistic"]
    """What is shown by it."""
    reached: Literal["reached", "not reached", "not assessed"]
    """Whether the claims of this run show it, and every rung below it is reached too."""
    why: Text
    """How many claims show it, or what is missing."""
    claims: tuple[Name, ...]
    """Ids of the claims that show it."""


class LadderRecord(Record):
    """A detector and its rungs, lowest first."""

    detector: Name
    """Name of the detector."""
    detector_digest: Digest
    """Digest of its spec."""
    rungs: tuple[RungRecord, ...]
    """All five."""
