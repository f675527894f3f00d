"""What must hold between records: a verdict better than its grounds is never written, and never believed."""

from collections import Counter
from collections.abc import Iterable, Iterator

from mi_audit.config import USUAL_ALPHA
from mi_audit.errors import EvidenceError
from mi_audit.evidence.climbing import ladders
from mi_audit.evidence.experiments import ExperimentRecord
from mi_audit.evidence.outcome import exit_code
from mi_audit.evidence.records import SCHEMA_VERSION, AuditRecord, ClaimRecord, DetectorRecord, ReadingRecord, RunRecord
from mi_audit.stats.claim import DISCRIMINATING, EFFECTS, SIDE_EFFECTS, needs_null
from mi_audit.stats.verdict import Verdict


def check(run: RunRecord) -> None:
    """Refuse a run whose records contradict each other.

    Raises:
        EvidenceError: names the first record that does not fit and why.
    """
    problem = next(_problems(run), None)
    if problem:
        raise EvidenceError(f"the evidence contradicts itself: {problem}")


def _problems(run: RunRecord) -> Iterator[str]:
    if run.schema_version != SCHEMA_VERSION:
        yield f"its schema version is {run.schema_version!r}; this version of mi-audit reads {SCHEMA_VERSION!r}"
    yield from _references(run)
    for detector in run.detectors:
        yield from _curve(detector)
        yield from _seen(detector, run)
    claims = {claim.id: claim for claim in run.claims}
    for claim in run.claims:
        yield from _claim(claim, run)
    yield from _precision(run)
    yield from _saes(run)
    yield from _experiments(run)
    yield from _instruments(run)
    for audit in run.audits:
        yield from _audit(audit, claims)
    decided = next((claim for claim in run.claims if claim.verdict in (Verdict.PASS, Verdict.FAIL)), None)
    if run.model is None and decided is not None:
        yield f"claim {decided.id} is {decided.verdict}, but no model was loaded"
    if Verdict.worst([audit.verdict for audit in run.audits]).severity > run.verdict.severity:
        yield f"the overall verdict is {run.verdict}, better than the worst audit"
    expected = exit_code([audit.verdict for audit in run.audits], run.verdict, run.partial)
    if run.exit_code != expected:
        yield f"its exit code is {run.exit_code}; its verdicts, in a run that is {'PARTIAL' if run.partial else 'whole'}, give {expected}"
    if not run.partial:
        yield from _completeness(run)
    if run.ladders != ladders(run.detectors, run.suites, run.experiments, run.audits, run.claims):
        yield "its evidence ladders are not those that its claims give"


def _references(run: RunRecord) -> Iterator[str]:
    yield from _twice("audit", (audit.id for audit in run.audits))
    yield from _twice("claim", (claim.id for claim in run.claims))
    yield from _twice("reading or experiment", [*(reading.id for reading in run.readings), *(experiment.id for experiment in run.experiments)])
    yield from _twice("detector", (detector.digest for detector in run.detectors))
    yield from _twice("suite", (suite.digest for suite in run.suites))
    detectors = {detector.digest for detector in run.detectors}
    suites = {suite.digest for suite in run.suites}
    measured: dict[str, ReadingRecord | ExperimentRecord] = {reading.id: reading for reading in run.readings}
    measured.update({experiment.id: experiment for experiment in run.experiments})
    for record in measured.values():
        kind = _kind(record)
        if record.detector_digest not in detectors:
            yield f"{kind} {record.id} uses the detector {record.detector!r}, which is not recorded"
        if record.suite_digest not in suites:
            yield f"{kind} {record.id} uses the suite {record.suite!r}, which is not recorded"
    for claim in run.claims:
        if claim.reading not in measured:
            yield f"claim {claim.id} rests on the reading {claim.reading}, which is not recorded"
            continue
        record = measured[claim.reading]
        kind = _kind(record)
        if _subject(record) != _subject(claim):
            yield f"claim {claim.id} names another detector or suite than its {kind}"
        elif claim.n > record.n and claim.on is None:
            yield f"claim {claim.id} counts {claim.n} prompts, its {kind} {record.n}"
    made = [(claim.id, claim.audit) for claim in run.claims]
    listed = [(claim, audit.id) for audit in run.audits for claim in audit.claims]
    if sorted(made) != sorted(listed):
        odd = min(set(made) ^ set(listed), default=("", ""))
        yield f"claim {odd[0]} of {odd[1]} is recorded without being listed by its audit, or listed without being recorded"


def _kind(record: ReadingRecord | ExperimentRecord) -> str:
    return "reading" if isinstance(record, ReadingRecord) else "experiment"


def _subject(record: ReadingRecord | ExperimentRecord | ClaimRecord) -> tuple[str, str, str, str]:
    return record.detector, record.detector_digest, record.suite, record.suite_digest


def _curve(detector: DetectorRecord) -> Iterator[str]:
    """A sweep reads at the layer that its curve shows to be the best, the earliest of equals."""
    if (detector.kind == "sweep") != bool(detector.curve) or (detector.validation_suite is None) == bool(detector.curve):
        yield f"the detector {detector.name!r} is a {detector.kind} with a curve of {len(detector.curve)} layers; a sweep has one, and a validation suite"
        return
    layers = [point.layer for point in detector.curve]
    if layers != sorted(set(layers)) or len(layers) == 1:
        yield f"the curve of {detector.name!r} does not ascend over two layers or more"
    for point in detector.curve:
        bounds = [bound for bound in (point.low, point.auroc, point.high) if bound is not None]
        if len(bounds) not in (0, 3) or bounds != sorted(bounds) or any(not 0 <= bound <= 1 for bound in bounds):
            yield f"the curve of {detector.name!r} has an AUROC at layer {point.layer} that does not lie in its interval"
    best = max((point.auroc for point in detector.curve if point.auroc is not None), default=None)
    expected = [next(point.layer for point in detector.curve if point.auroc == best)] if best is not None else []
    picked = [point.layer for point in detector.curve if point.picked]
    if detector.curve and (not expected or picked != expected or detector.layer != expected[0]):
        yield f"the detector {detector.name!r} reads at layer {detector.layer}, picked {picked}, but its curve is best at {expected}"


def _seen(detector: DetectorRecord, run: RunRecord) -> Iterator[str]:
    """What took part in making a detector is recorded: a suite of which nothing did is told from it."""
    names = {suite.digest: suite.name for suite in run.suites}
    if not names.keys() >= set(detector.seen):
        yield f"the detector {detector.name!r} was made from a suite that is not recorded"
    elif unseen := [
        name for name in (detector.fit_suite, detector.validation_suite) if name is not None and name not in {names[each] for each in detector.seen}
    ]:
        yield f"the detector {detector.name!r} was made from {unseen[0]!r}, which is not among the suites that it has seen"


def _twice(kind: str, ids: Iterable[str]) -> Iterator[str]:
    for name, count in Counter(ids).items():
        if count > 1:
            yield f"{kind} {name} is recorded {count} times"


def _claim(claim: ClaimRecord, run: RunRecord) -> Iterator[str]:
    if claim.alpha != run.plan.alpha:
        yield f"claim {claim.id} was decided at alpha {claim.alpha:g}, the plan says {run.plan.alpha:g}"
    for null in claim.nulls:
        if abs(null.p - (null.k + 1) / (null.draws + 1)) > 1e-9 or null.k > null.draws:
            yield f"claim {claim.id}: the null {null.name!r} has p = {null.p:g}, which is not (k + 1)/(B + 1)"
        if null.passed and null.p > claim.alpha + 1e-9:
            yield f"claim {claim.id}: the null {null.name!r} is called beaten with p = {null.p:g} above alpha"
    if claim.verdict is not Verdict.PASS:
        return
    if claim.value is None or claim.low is None or claim.high is None:
        yield f"claim {claim.id} is PASS without an estimate and its interval"
    elif not _holds(claim.op, claim.low, claim.high, claim.threshold):
        yield f"claim {claim.id} is PASS, but its interval [{claim.low:g}, {claim.high:g}] is not all {claim.op} {claim.threshold:g}"
    if not needs_null(claim.quantity, claim.op, claim.threshold):
        return
    if not all(null.passed for null in claim.nulls if null.decides):
        yield f"claim {claim.id} is PASS without beating its nulls"
    if not any(null.decides for null in claim.nulls):
        yield f"claim {claim.id} is PASS without a null: nothing shows that its labels, or its direction, matter"
    if any(null.downward != (claim.op in ("<=", "<")) for null in claim.nulls):
        yield f"claim {claim.id} is PASS, but a null of it is ranked towards the other side"


def _holds(op: str, low: float, high: float, threshold: float) -> bool:
    match op:
        case ">=":
            return low >= threshold
        case ">":
            return low > threshold
        case "<=":
            return high <= threshold
        case _:
            return high < threshold


def _precision(run: RunRecord) -> Iterator[str]:
    """Scores in low precision support no verdict without the spread that its interval was widened by."""
    for reading in run.readings:
        if (reading.spread is None) != (reading.spread_n is None) or (reading.spread is not None and reading.spread < 0) or reading.spread_n == 0:
            yield f"reading {reading.id} has a spread of {reading.spread} on a sample of {reading.spread_n}"
        if (reading.spread_n or 0) > reading.n:
            yield f"reading {reading.id} has {reading.n} prompts, and a spread on a sample of {reading.spread_n}"
    exact = {reading.id for reading in run.readings if reading.spread is not None}  # an experiment in low precision is never decided
    if run.model is not None and run.model.dtype not in ("float32", "float64"):
        for claim in run.claims:
            if claim.verdict in (Verdict.PASS, Verdict.FAIL) and claim.reading not in exact:
                yield f"claim {claim.id} is {claim.verdict} on scores in {run.model.dtype} that were not compared with float32"


def _saes(run: RunRecord) -> Iterator[str]:
    """Latents decide nothing without a record of their SAE that reaches its floors."""
    latent = {detector.digest for detector in run.detectors if detector.kind == "latent"}
    below: set[str] = set()
    measured: list[ReadingRecord | ExperimentRecord] = [*run.readings, *run.experiments]
    for record in measured:
        what = f"{_kind(record)} {record.id}"
        if (record.sae is not None) != (record.detector_digest in latent):
            yield f"{what} of {record.detector!r} has {'a' if record.sae else 'no'} record of a sparse autoencoder"
        if record.sae is None:
            continue
        sae = record.sae
        bounds = [(sae.explained_variance_low, sae.explained_variance_floor), (sae.loss_recovered_low, sae.loss_recovered_floor)]
        if sae.latents_explain is not None:
            bounds.append((sae.latents_explain_low, sae.explained_variance_floor))
        missed = sae.better_at is not None or any(low is None or low < floor for low, floor in bounds)
        if missed != bool(sae.below):
            yield f"{what}: its sparse autoencoder {sae.name!r} {'misses' if missed else 'reaches'} its floors, but is said to do otherwise"
        if sae.below:
            below.add(record.id)
    for claim in run.claims:
        if claim.reading in below and claim.verdict in (Verdict.PASS, Verdict.FAIL):
            yield f"claim {claim.id} is {claim.verdict} on latents of a sparse autoencoder that does not reach its floors"


def _experiments(run: RunRecord) -> Iterator[str]:
    """Experiments that were finished, at strengths that were measured, bear claims; no others do."""
    suites = {suite.digest for suite in run.suites}
    made = {each.id: each for each in run.experiments}
    for each in run.experiments:
        if not {curve.suite_digest for curve in each.side_effects} <= suites:
            yield f"experiment {each.id} has a side effect on a suite that is not recorded"
        curves = [[point.strength for point in curve.points] for curve in each.side_effects]
        if any(strengths != sorted(set(strengths)) or not strengths for strengths in ([point.strength for point in each.points], *curves)):
            yield f"the strengths of the experiment {each.id}, or of a side effect of it, do not ascend"
        for point in each.points:
            bounds = [bound for bound in (point.low, point.change, point.high) if bound is not None]
            if len(bounds) != (0 if point.failed is not None else 3) or bounds != sorted(bounds):
                yield f"experiment {each.id} has a change at the strength {point.strength:g} that does not lie in its interval"
    for claim in run.claims:
        if claim.reading in made:
            yield from _of_experiment(claim, made[claim.reading])
        elif claim.quantity in EFFECTS | SIDE_EFFECTS or claim.strength is not None or claim.over_null or claim.on is not None:
            yield f"claim {claim.id} about {claim.quantity} rests on a reading, and can only rest on an experiment"


def _of_experiment(claim: ClaimRecord, experiment: ExperimentRecord) -> Iterator[str]:
    measured = {point.strength: point for point in experiment.points if point.failed is None}
    if experiment.error is not None or (claim.strength not in measured if claim.strength is not None else len(measured) < len(experiment.points)):
        yield f"claim {claim.id} rests on an experiment, or a strength of it, that was not finished"
    elif claim.quantity not in EFFECTS | SIDE_EFFECTS or (claim.on is not None) != (claim.quantity in SIDE_EFFECTS):
        yield f"claim {claim.id} is about {claim.quantity}, measured on {claim.on or 'the suite of the experiment itself'}"
    elif (claim.strength is not None) != (claim.quantity == "change" or claim.on is not None):
        yield f"claim {claim.id} is about {claim.quantity} {'of all strengths' if claim.strength is None else f'at the strength {claim.strength:g}'}"
    elif claim.strength is not None and not claim.over_null:
        curves = [curve for curve in experiment.side_effects if (curve.quantity, curve.suite) == (claim.quantity, claim.on) and claim.n <= curve.n]
        sides = [(side.value, side.low, side.high) for curve in curves for side in curve.points if side.strength == claim.strength]
        point = measured[claim.strength]
        given = [(point.change, point.low, point.high)] if claim.on is None else sides
        if (claim.value, claim.low, claim.high) not in given:
            yield f"claim {claim.id} is not of the {claim.quantity} that its experiment gives at the strength {claim.strength:g}"


def _instruments(run: RunRecord) -> Iterator[str]:
    shown: dict[str, list[Verdict]] = {}
    for claim in run.claims:
        if claim.about == "instrument":
            shown.setdefault(claim.detector_digest, []).append(claim.verdict)
    for claim in run.claims:
        if claim.about == "model" and claim.verdict is Verdict.PASS and Verdict.worst(shown.get(claim.detector_digest, [])) is not Verdict.PASS:
            yield f"claim {claim.id} about the model is PASS, but its instrument {claim.detector!r} did not pass every claim about itself in this run"
    for claim in run.claims:
        if claim.about == "model" and claim.verdict is Verdict.PASS and claim.detector_digest not in _read_by(run):
            yield f"claim {claim.id} about the model is PASS, but nothing shows that its instrument {claim.detector!r} tells its classes apart"
    made = {experiment.id for experiment in run.experiments}
    for claim in run.claims:
        small = claim.reading in made and not needs_null(claim.quantity, claim.op, claim.threshold)
        if claim.about == "model" and claim.verdict is Verdict.PASS and small and claim.detector_digest not in _handled_by(run):
            yield f"claim {claim.id} about the model is PASS, but nothing shows that {claim.detector!r} moves any effect"


def _handled_by(run: RunRecord) -> set[str]:
    """Digests of the detectors that a passed claim shows to move an effect."""
    made = {experiment.id for experiment in run.experiments}
    pushes = (claim for claim in run.claims if claim.about == "instrument" and claim.reading in made and needs_null(claim.quantity, claim.op, claim.threshold))
    return {claim.detector_digest for claim in pushes if claim.verdict is Verdict.PASS}


def _read_by(run: RunRecord) -> set[str]:
    """Digests of the detectors that a passed claim shows to tell classes apart; silence shows nothing."""
    telling = (claim for claim in run.claims if claim.about == "instrument" and claim.quantity in DISCRIMINATING and claim.op in (">=", ">"))
    return {claim.detector_digest for claim in telling if claim.verdict is Verdict.PASS}


def _audit(audit: AuditRecord, claims: dict[str, ClaimRecord]) -> Iterator[str]:
    if audit.error is not None and audit.verdict is not Verdict.ERROR:
        yield f"audit {audit.id} is {audit.verdict}, but it could not run: {audit.error}"
    for claim in audit.claims:
        if claim in claims and claims[claim].about != audit.about:
            yield f"claim {claim} is about the {claims[claim].about}, its audit {audit.id} about the {audit.about}"
    of_claims = Verdict.worst([claims[claim].verdict for claim in audit.claims if claim in claims])
    if of_claims.severity > audit.verdict.severity:
        yield f"audit {audit.id} is {audit.verdict}, better than the worst of its claims ({of_claims})"
    if audit.unplanned is not None and audit.verdict is Verdict.PASS:
        yield f"audit {audit.id} is PASS, but it was not planned before the run"


def _completeness(run: RunRecord) -> Iterator[str]:
    if len(run.audits) != run.plan.audits:
        yield f"{run.plan.audits} audits were planned and {len(run.audits)} are recorded, in a run that is not called partial"
    if any(audit.unplanned for audit in run.audits):
        yield "an audit was not planned, in a run that is not called partial"
    if run.plan.alpha > USUAL_ALPHA:
        yield f"claims were decided at alpha {run.plan.alpha:g}, in a run that is not called partial"
    if run.plan.limit is not None:
        yield "the suites were cut short by a limit, in a run that is not called partial"
    if len(run.claims) != run.plan.claims and not any(audit.verdict is Verdict.ERROR for audit in run.audits):
        yield f"{run.plan.claims} claims were planned and {len(run.claims)} are recorded, in a run that is not called partial"
