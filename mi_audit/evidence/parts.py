"""What a process that judges audits hands on: the outline of the plan, and a part for each audit when it is done.

A run in one process and a run in many differ only in where the parts lie until they are assembled: `GatheredParts` keeps them in memory.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mi_audit.evidence.experiments import ExperimentRecord
from mi_audit.evidence.fields import Count, Digest, Flag, Name, Number, Record, Text
from mi_audit.evidence.records import AuditHead, AuditRecord, ClaimRecord, DetectorRecord, ModelRecord, PlanRecord, PluginRecord, ReadingRecord, SuiteRecord
from mi_audit.evidence.samples import SampleTable
from mi_audit.evidence.tokens import TokenTable


class AuditOutline(AuditHead):
    """An audit as planned."""

    node: Text
    """What pytest calls it."""
    faults: tuple[Text, ...]
    """Why it can't run; empty if it can."""
    detectors: tuple[Digest, ...]
    """Digests of the detectors that its claims are about."""


class Outline(Record):
    """The plan as far as the evidence needs it: enough to miss an audit that left no part."""

    plan: PlanRecord
    """The plan."""
    audits: tuple[AuditOutline, ...]
    """Every audit, in the order of the plan."""
    partial: tuple[Text, ...]
    """Why the run can't gate, as far as known when it was planned."""
    broken: tuple[Text, ...]
    """Audit files, or folders of such, that could not be collected."""
    plugins: tuple[PluginRecord, ...]
    """Third-party plugins that were active."""
    texts_shown: Flag
    """Whether tokens are kept with their texts."""
    lines: tuple[Text, ...]
    """The plan in lines for the terminal."""


class PartRecord(Record):
    """One audit done, with what was newly measured for it in its process."""

    place: Count
    """Place of the audit in the plan, from 0."""
    audit: AuditRecord
    """The audit; its claims about the model are not yet held to instruments that another process judged."""
    claims: tuple[ClaimRecord, ...]
    """Its claims."""
    model: ModelRecord | None
    """The model; absent if it could not be loaded."""
    suites: tuple[SuiteRecord, ...]
    """Suites newly used."""
    detectors: tuple[DetectorRecord, ...]
    """Detectors newly used."""
    readings: tuple[ReadingRecord, ...]
    """Readings newly used."""
    experiments: tuple[ExperimentRecord, ...] = ()
    """Experiments of this audit, with all side effects that were measured of them so far in this process."""
    sampled: tuple[Digest, ...] = ()
    """The measurements that the part has rows of."""
    seconds: dict[Name, Number]
    """Seconds per phase since the part before."""
    cache: dict[Name, Count]
    """Prompts that passed through the model, and that were found in the cache, since the part before; and as `VolatileRecord.cache`."""
    cache_trouble: Text | None
    """Why the process keeps nothing more in the cache."""


@dataclass(frozen=True, eq=False)
class Part:
    """A part with the rows of its readings and the files of its detectors, by their names in the bundle."""

    record: PartRecord
    samples: SampleTable
    tokens: TokenTable
    files: Mapping[str, bytes]


class Parts(Protocol):
    """Where parts lie until they are assembled."""

    def fix_plan(self, outline: Outline) -> None:
        """Keep the outline, before anything is judged."""

    def begin(self, place: int) -> int:
        """Note that the audit at this place of the plan begins, and tell how often it began before without coming to an end."""

    def add(self, part: Part) -> None:
        """Keep a part."""

    def outline(self) -> Outline | None:
        """The outline; None if no plan was fixed."""

    def parts(self) -> Iterable[Part]:
        """All parts, in any order."""


class GatheredParts:
    """The parts of a run in one process."""

    def __init__(self) -> None:
        self._outline: Outline | None = None
        self._parts: list[Part] = []

    def fix_plan(self, outline: Outline) -> None:
        """Keep the outline."""
        self._outline = outline

    def begin(self, place: int) -> int:
        """Always 0: with the process that judges, the run ends."""
        return 0

    def add(self, part: Part) -> None:
        """Keep a part."""
        self._parts.append(part)

    def outline(self) -> Outline | None:
        """The outline; None if no plan was fixed."""
        return self._outline

    def parts(self) -> Iterable[Part]:
        """All parts, in the order in which they were added."""
        return tuple(self._parts)
