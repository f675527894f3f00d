"""The evidence ladder, climbed: which rungs the claims of a run show for each detector.

The criteria are fixed. A claim counts where it is about the instrument and passed. **read**: a claim that the detector tells the classes apart, above its
nulls; baselines that see no internals are held against it and named where they do as well. **selective**: it stays under its threshold on a suite without
positives, and on benign prompts of the very topics, or tells the classes apart where every topic holds both. **causal**: of one experiment that adds or clamps,
the effect, which is made of what the model says, beats its null; it goes both ways (a sign reversal, or the opposite of the same effect by an ablation of the
same detector); and its divergence on neutral text is bounded at its lowest and its highest strength. What beats the null alone, while the effect itself goes
nowhere or the other way, is no effect. **general**: all of these on suites of which nothing took part in making the detector, as far as
that is known: of a direction that was found elsewhere it is not. **mechanistic** is not assessed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mi_audit.evidence.experiments import ExperimentRecord
from mi_audit.evidence.ladder import LadderRecord, RungRecord
from mi_audit.evidence.records import AuditRecord, ClaimRecord, DetectorRecord, SuiteRecord
from mi_audit.stats.claim import DISCRIMINATING, EFFECTS, needs_null
from mi_audit.stats.verdict import Verdict


def ladders(
    detectors: Sequence[DetectorRecord],
    suites: Sequence[SuiteRecord],
    experiments: Sequence[ExperimentRecord],
    audits: Sequence[AuditRecord],
    claims: Sequence[ClaimRecord],
) -> tuple[LadderRecord, ...]:
    """The ladder of each detector about which a claim was decided. What was claimed by an audit that failed as a tool shows nothing."""
    of_suite = {suite.digest: suite for suite in suites}
    failed = {audit.id for audit in audits if audit.error is not None}
    climbed = []
    for detector in detectors:
        own = [claim for claim in claims if claim.detector_digest == detector.digest]
        if own:
            passed = [claim for claim in own if claim.about == "instrument" and claim.verdict is Verdict.PASS and claim.audit not in failed]
            made = {each.id: each for each in experiments if each.detector_digest == detector.digest}
            climbed.append(LadderRecord(detector=detector.name, detector_digest=detector.digest, rungs=_rungs(_Shown(detector, of_suite, made, passed))))
    return tuple(climbed)


@dataclass(frozen=True)
class _Found:
    """The claims that show something, or what is missing for it."""

    claims: tuple[ClaimRecord, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class _Shown:
    """What the passed claims about one detector show."""

    detector: DetectorRecord
    suites: dict[str, SuiteRecord]
    experiments: dict[str, ExperimentRecord]
    claims: Sequence[ClaimRecord]

    def elsewhere(self) -> "_Shown":
        """Only what was measured on suites of which nothing took part in making the detector."""
        seen = {self._origin(digest) for digest in self.detector.seen}
        apart = [claim for claim in self.claims if claim.apart and self._origin(claim.suite_digest) not in seen]
        return _Shown(self.detector, self.suites, self.experiments, apart)

    def read(self) -> _Found:
        telling = [claim for claim in self._of_readings() if claim.quantity in DISCRIMINATING and _beats_its_null(claim)]
        if not telling:
            return _Found(missing="no claim that passed shows that it tells its classes apart, above its nulls")
        return _Found(tuple(telling))

    def selective(self) -> _Found:
        quiet = [claim for claim in self._of_readings() if claim.quantity == "rate" and claim.op in ("<=", "<") and self._is_benign(claim.suite_digest)]
        if not quiet:
            return _Found(missing="no claim that passed shows that it stays quiet on benign prompts (rate() <= … on a suite without positives)")
        matched = [claim for claim in (*quiet, *self.read().claims) if self._is_matched(claim.suite_digest)]
        if not matched:
            return _Found(missing="no claim that passed is about benign prompts of the same topics (a suite each of whose groups holds both classes)")
        return _Found(tuple(dict.fromkeys((*quiet, *matched))))

    def causal(self) -> _Found:
        """Of the experiments the one that shows most."""
        if not self.experiments:
            return _Found(missing="no experiment was made with it (model.steer, model.ablate)")
        steered = [each for each in self.experiments.values() if not _is_ablation(each)]
        if not steered:
            return _Found(missing="it was ablated, but not steered along (model.steer)")
        tried = [self._caused_by(each) for each in steered if each.scored is None]
        if not tried:
            return _Found(missing="what was measured of its experiments is the score of a detector, and nothing that the model says")
        return max(tried, key=lambda found: (not found.missing, len(found.claims)))

    def _caused_by(self, experiment: ExperimentRecord) -> _Found:
        own = [claim for claim in self.claims if claim.reading == experiment.id]
        where = f"on {experiment.suite}"
        moved = [claim for claim in own if _pushes(claim, experiment) and claim.strength != 0.0]  # a clamp at 0 is an ablation
        if not moved:
            return _Found(missing=f"no claim that passed shows that the effect of it {where} beats that of directions with nothing to find")
        ablations = {each.id: each for each in self.experiments.values() if _is_ablation(each) and each.effect_digest == experiment.effect_digest}
        back = [claim for claim in moved if claim.quantity == "sign_reversal"] or [
            claim
            for claim in self.claims
            if claim.reading in ablations and _pushes(claim, ablations[claim.reading]) and all(_direction(claim) == -_direction(other) for other in moved)
        ]
        if not back:
            return _Found(tuple(moved), f"no claim that passed shows that it works both ways {where} (sign_reversal(), or an ablation that does the opposite)")
        ends = {experiment.points[0].strength, experiment.points[-1].strength}
        bounded = [claim for claim in own if claim.quantity == "kl" and claim.op in ("<=", "<") and claim.strength in ends]
        if {claim.strength for claim in bounded} != ends:
            lacking = " and ".join(f"{strength:g}" for strength in sorted(ends - {claim.strength for claim in bounded}))
            return _Found((*moved, *back), f"no claim that passed bounds its divergence on neutral text at {lacking} (at(…).side_effects().kl() <= …)")
        return _Found(tuple(dict.fromkeys((*moved, *back, *bounded))))

    def _of_readings(self) -> list[ClaimRecord]:
        return [claim for claim in self.claims if claim.reading not in self.experiments]

    def _origin(self, digest: str) -> str:
        suite = self.suites.get(digest)
        return digest if suite is None or suite.origin is None else suite.origin

    def _is_benign(self, digest: str) -> bool:
        """Whether no prompt of a suite is known to be of the positive class."""
        return digest in self.suites and not self.suites[digest].positives

    def _is_matched(self, digest: str) -> bool:
        return digest in self.suites and self.suites[digest].matched


def _rungs(shown: _Shown) -> tuple[RungRecord, ...]:
    rungs = [("read", shown.read()), ("selective", shown.selective()), ("causal", shown.causal()), ("general", _general(shown))]
    records, below = [], ""
    for name, found in rungs:
        missing = found.missing or (f"the rung below it is missing: {below}" if below else "")
        shown_by = "a claim" if len(found.claims) == 1 else f"{len(found.claims)} claims"
        why = missing or f"shown by {shown_by}{_as_well(found.claims) if name == 'read' else ''}"
        records.append(_rung(name, "not reached" if missing else "reached", why, () if missing else found.claims))
        below = below or (name if missing else "")
    return (*records, _rung("mechanistic", "not assessed", "no circuit of named components was looked for", ()))


def _general(shown: _Shown) -> _Found:
    if shown.detector.kind == "direction":
        return _Found(missing="it was found elsewhere, and what took part in making it is not known")
    elsewhere = shown.elsewhere()
    parts = [elsewhere.read(), elsewhere.selective(), elsewhere.causal()]
    lacking = next((part.missing for part in parts if part.missing), "")
    if lacking:
        return _Found(missing=f"on suites that took no part in making it, {lacking}")
    return _Found(tuple(dict.fromkeys(claim for part in parts for claim in part.claims)))


def _rung(name: str, reached: str, why: str, claims: Iterable[ClaimRecord]) -> RungRecord:
    return RungRecord.model_validate({"name": name, "reached": reached, "why": why, "claims": tuple(claim.id for claim in claims)})


def _beats_its_null(claim: ClaimRecord) -> bool:
    deciding = [null for null in claim.nulls if null.decides]
    return needs_null(claim.quantity, claim.op, claim.threshold) and bool(deciding) and all(null.passed for null in deciding)


def _pushes(claim: ClaimRecord, experiment: ExperimentRecord) -> bool:
    """Whether it shows an effect to one side: the least of several means below 0 shows none."""
    sided = claim.quantity in EFFECTS and _beats_its_null(claim) and (claim.op in (">=", ">") or claim.quantity in ("slope", "change"))
    return sided and (not claim.over_null or _moves(claim, experiment))


def _moves(claim: ClaimRecord, experiment: ExperimentRecord) -> bool:
    """Whether the effect itself, and not only what it has in excess of the null, lies on the claimed side: at the strength, or at the ends of the sweep."""
    up = 1.0 if claim.op in (">=", ">") else -1.0
    first, last = experiment.points[0], experiment.points[-1]
    points = [point for point in experiment.points if point.strength == claim.strength] if claim.quantity == "change" else [first, last]
    ways = [up if claim.quantity == "change" or point.strength > 0.0 else -up for point in points]
    sure = [way * bound > 0.0 for way, point in zip(ways, points, strict=True) if (bound := point.low if way > 0 else point.high) is not None]
    return len(sure) == len(points) > 0 and (any(sure) if claim.quantity == "slope" else all(sure))


def _direction(claim: ClaimRecord) -> int:
    """1 where more of the detector's direction raises the effect, as far as the claim shows, −1 where it lowers it; an ablation is held against it as it is."""
    up = 1 if claim.op in (">=", ">") else -1
    return -up if claim.strength is not None and claim.strength < 0.0 else up


def _is_ablation(experiment: ExperimentRecord) -> bool:
    return experiment.action == "project_out" or [point.strength for point in experiment.points] == [0.0]


def _as_well(claims: Sequence[ClaimRecord]) -> str:
    """The baselines that no claim shows it to be better than."""
    better = {other.name for claim in claims for other in claim.baselines if other.difference_low > 0}
    others = sorted({other.name for claim in claims for other in claim.baselines} - better)
    return f"; not shown to be better than what sees no internals: {', '.join(others)}" if others else ""
