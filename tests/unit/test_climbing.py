"""The evidence ladder: each criterion of each rung, one by one, on a set of claims that reaches all but the last."""

from dataclasses import dataclass, replace

import pytest

from mi_audit.evidence.climbing import ladders
from mi_audit.evidence.experiments import DosePoint, ExperimentRecord
from mi_audit.evidence.records import AuditRecord, BaselineRecord, ClaimRecord, DetectorRecord, NullRecord, SuiteRecord
from mi_audit.stats.verdict import Verdict
from tests.unit.bundles import sha

PUSH, AGAIN, TAKE = sha("push"), sha("push elsewhere"), sha("take out")
HOME, AWAY, MATCHED, BENIGN = "pairs[test]", "field", "topics", "benign"
BEATEN = NullRecord(name="shuffled labels", draws=99, k=0, p=0.01, passed=True, median=0.0, high=0.1, observed=1.0, decides=True)
UNBEATEN = BEATEN.model_copy(update={"k": 50, "p": 0.51, "passed": False})


@dataclass(frozen=True)
class Case:
    """What a ladder is computed from, by name."""

    claims: dict[str, ClaimRecord]
    experiments: dict[str, ExperimentRecord]
    suites: dict[str, SuiteRecord]
    detector: DetectorRecord
    audit: AuditRecord

    def reached(self) -> list[str]:
        return [name for name, (reached, _, _) in self.rungs().items() if reached == "reached"]

    def rungs(self) -> dict[str, tuple[str, str, set[str]]]:
        (ladder,) = ladders([self.detector], list(self.suites.values()), list(self.experiments.values()), [self.audit], list(self.claims.values()))
        return {rung.name: (rung.reached, rung.why, set(rung.claims)) for rung in ladder.rungs}

    def without(self, *names: str) -> "Case":
        return replace(self, claims={name: claim for name, claim in self.claims.items() if name not in names})

    def claim(self, name: str, **change) -> "Case":
        return replace(self, claims=self.claims | {name: self.claims[name].model_copy(update=change)})

    def experiment(self, name: str, **change) -> "Case":
        return replace(self, experiments=self.experiments | {name: self.experiments[name].model_copy(update=change)})

    def suite(self, name: str, **change) -> "Case":
        return replace(self, suites=self.suites | {name: self.suites[name].model_copy(update=change)})

    def made(self, **change) -> "Case":
        return replace(self, detector=self.detector.model_copy(update=change))


def claim_of(name: str, on: str, quantity: str, op: str, threshold: float, *, reading: str = "", strength=None, nulls=()) -> ClaimRecord:
    fields = {
        "id": name,
        "audit": "a",
        "index": 0,
        "line": None,
        "about": "instrument",
        "detector": "honesty",
        "detector_digest": sha("honesty"),
        "reading": reading or sha(f"honesty on {on}"),
        "suite": on,
        "suite_digest": sha(on),
        "quantity": quantity,
        "pairs": None,
        "strength": strength,
        "op": op,
        "threshold": threshold,
        "text": name,
        "verdict": "PASS",
        "reasons": (),
        "value": 1.0,
        "low": 1.0,
        "high": 1.0,
        "alpha": 0.025,
        "n": 40,
        "n_positive": None,
        "apart": True,
        "groups": 40,
        "method": "",
        "needed_n": None,
        "needed_groups": None,
        "nulls": nulls,
        "baselines": (),
        "selectivity": None,
        "worst": (),
    }
    return ClaimRecord.model_validate(fields)


def point(strength: float, change: float) -> DosePoint:
    return DosePoint(strength=strength, change=change, low=change - 0.5, high=change + 0.5, nulls=(), direct=None, failed=None)


def experiment_of(id: str, on: str, strengths: tuple[float, ...], action: str = "add", effect: str = "logit difference") -> ExperimentRecord:
    points = [point(strength, 1.0 if strength > 0 else -1.0) for strength in strengths]
    fields = {
        "id": id,
        "detector": "honesty",
        "detector_digest": sha("honesty"),
        "suite": on,
        "suite_digest": sha(on),
        "effect": effect,
        "effect_digest": sha(effect),
        "scored": None,
        "recomputable": True,
        "action": action,
        "unit": "vector",
        "length": None,
        "corpus": None,
        "hook_point": "resid_post",
        "layer": 3,
        "tokens": "all",
        "n": 40,
        "groups": 40,
        "origin": True,
        "unsteered": 0.0,
        "points": points,
        "saturation_up": None,
        "saturation_down": None,
        "passed": "",
        "controls": True,
        "sae": None,
        "side_effects": (),
        "generations": (),
        "profile": (),
        "error": None,
    }
    return ExperimentRecord.model_validate(fields)


def suite_of(name: str, matched: bool = False) -> SuiteRecord:
    origin = sha(name.split("[")[0])
    return SuiteRecord(name=name, digest=sha(name), source="", n=40, groups=40, positives=None, negatives=None, origin=origin, matched=matched)


def pushed(name: str, id: str, on: str) -> dict[str, ClaimRecord]:
    return {
        f"{name} slope": claim_of(f"{name} slope", on, "slope", ">", 0.0, reading=id, nulls=(BEATEN,)),
        f"{name} both ways": claim_of(f"{name} both ways", on, "sign_reversal", ">", 0.0, reading=id, nulls=(BEATEN,)),
        f"{name} kl low": claim_of(f"{name} kl low", on, "kl", "<=", 0.1, reading=id, strength=-2.0),
        f"{name} kl high": claim_of(f"{name} kl high", on, "kl", "<=", 0.1, reading=id, strength=2.0),
    }


DETECTOR = DetectorRecord(
    name="honesty",
    digest=sha("honesty"),
    kind="probe",
    method="difference_of_means",
    hook_point="resid_post",
    layer=3,
    tokens="last",
    fit_suite="pairs[train]",
    fit_n=40,
    fit_groups=40,
    seen=(sha("pairs[train]"),),
    validation_suite=None,
    curve=(),
    regularisation=None,
    threshold=1.0,
    threshold_rule=None,
    file=None,
    file_digest=None,
)
AUDIT = AuditRecord(
    id="a",
    file="audit_a.py",
    function="audit_a",
    title="A",
    doc="",
    about="instrument",
    severity="medium",
    controls=(),
    source_digest=sha("source"),
    unplanned=None,
    verdict="PASS",
    error=None,
    claims=(),
)
HIGH = Case(
    claims={
        "tells": claim_of("tells", HOME, "auroc", ">=", 0.9, nulls=(BEATEN,)),
        "tells away": claim_of("tells away", AWAY, "auroc", ">=", 0.9, nulls=(BEATEN,)),
        "quiet": claim_of("quiet", BENIGN, "rate", "<=", 0.02),
        "quiet on topics": claim_of("quiet on topics", MATCHED, "rate", "<=", 0.02),
        **pushed("push", PUSH, HOME),
        **pushed("again", AGAIN, AWAY),
    },
    experiments={"push": experiment_of(PUSH, HOME, (-2.0, -1.0, 2.0)), "again": experiment_of(AGAIN, AWAY, (-2.0, -1.0, 2.0))},
    suites={name: suite_of(name, name == MATCHED) for name in ("pairs[train]", HOME, AWAY, MATCHED, BENIGN)},
    detector=DETECTOR,
    audit=AUDIT,
)
LOW = HIGH.without(*(name for name in HIGH.claims if "away" in name or "again" in name))
"""Up to causal, on the suite that it was fitted on alone."""


def test_every_rung_but_the_last_can_be_reached():
    rungs = HIGH.rungs()
    assert HIGH.reached() == ["read", "selective", "causal", "general"]
    assert rungs["mechanistic"][0] == "not assessed"
    assert rungs["read"][2] == {"tells", "tells away"}
    assert rungs["selective"][2] == {"quiet", "quiet on topics"}
    assert rungs["causal"][2] == set(pushed("push", PUSH, HOME))
    assert rungs["general"][2] == {"tells away", "quiet", "quiet on topics", *pushed("again", AGAIN, AWAY)}
    assert LOW.reached() == ["read", "selective", "causal"]


@pytest.mark.parametrize(
    "case",
    [
        LOW.without("tells"),
        LOW.claim("tells", nulls=()),
        LOW.claim("tells", nulls=(UNBEATEN,)),
        LOW.claim("tells", nulls=(BEATEN, UNBEATEN)),
        LOW.claim("tells", nulls=(BEATEN.model_copy(update={"decides": False}),)),
        LOW.claim("tells", op="<="),
        LOW.claim("tells", quantity="rate"),
        LOW.claim("tells", quantity="slope"),
        LOW.claim("tells", reading=PUSH),
        LOW.claim("tells", verdict="INCONCLUSIVE"),
        LOW.claim("tells", verdict="FAIL"),
        LOW.claim("tells", about="model"),
        LOW.claim("tells", detector_digest=sha("another")),
    ],
)
def test_what_does_not_read_reaches_nothing(case):
    rungs = case.rungs()
    assert case.reached() == []
    assert rungs["read"][1] == "no claim that passed shows that it tells its classes apart, above its nulls"
    assert rungs["selective"][1] == rungs["causal"][1] == "the rung below it is missing: read"
    assert all(not claims for _, _, claims in rungs.values())


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (LOW.without("quiet", "quiet on topics"), "stays quiet on benign prompts"),
        (LOW.without("quiet").suite(MATCHED, positives=3, negatives=37), "stays quiet on benign prompts"),
        (LOW.without("quiet").claim("quiet on topics", op=">="), "stays quiet on benign prompts"),
        (LOW.without("quiet").claim("quiet on topics", quantity="recall"), "stays quiet on benign prompts"),
        (LOW.without("quiet").claim("quiet on topics", verdict="INCONCLUSIVE"), "stays quiet on benign prompts"),
        (LOW.without("quiet on topics"), "benign prompts of the same topics"),
        (LOW.suite(MATCHED, matched=False), "benign prompts of the same topics"),
    ],
)
def test_what_is_not_selective_only_reads(case, why):
    assert case.reached() == ["read"]
    assert why in case.rungs()["selective"][1]
    assert case.rungs()["causal"][1] == "the rung below it is missing: selective"


def test_a_suite_of_both_classes_in_each_topic_shows_that_it_is_selective():
    assert LOW.without("quiet on topics").suite(HOME, matched=True).rungs()["selective"][2] == {"quiet", "tells"}


NOT_MOVED = "beats that of directions with nothing to find"
ONE_WAY = "works both ways"
ONE_END = "bounds its divergence on neutral text at"


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (replace(LOW, experiments={}).without(*pushed("push", PUSH, HOME)), "no experiment was made with it"),
        (LOW.without("push slope", "push both ways"), NOT_MOVED),
        (LOW.without("push both ways").claim("push slope", nulls=()), NOT_MOVED),
        (LOW.without("push both ways").claim("push slope", nulls=(BEATEN, UNBEATEN)), NOT_MOVED),
        (LOW.without("push both ways").claim("push slope", threshold=-0.5), NOT_MOVED),
        (LOW.without("push both ways").claim("push slope", quantity="smallest_step", op="<"), NOT_MOVED),
        (LOW.without("push slope").claim("push both ways", op="<"), NOT_MOVED),
        (LOW.without("push both ways").claim("push slope", about="model"), NOT_MOVED),
        (LOW.without("push both ways"), ONE_WAY),
        (LOW.claim("push both ways", op="<"), ONE_WAY),
        (LOW.claim("push both ways", verdict="INCONCLUSIVE"), ONE_WAY),
        (LOW.claim("push both ways", nulls=(UNBEATEN,)), ONE_WAY),
        (LOW.without("push kl low"), f"{ONE_END} -2 "),
        (LOW.without("push kl high"), f"{ONE_END} 2 "),
        (LOW.without("push kl low", "push kl high"), f"{ONE_END} -2 and 2 "),
        (LOW.claim("push kl low", strength=-1.0), f"{ONE_END} -2 "),
        (LOW.claim("push kl high", quantity="loss_change"), f"{ONE_END} 2 "),
        (LOW.claim("push kl high", op=">="), f"{ONE_END} 2 "),
        (LOW.claim("push kl high", verdict="INCONCLUSIVE"), f"{ONE_END} 2 "),
        (LOW.claim("push kl high", reading=AGAIN), f"{ONE_END} 2 "),
        (LOW.experiment("push", action="project_out").experiment("again", action="project_out"), "it was ablated, but not steered along"),
    ],
)
def test_what_is_not_causal_is_selective_at_most(case, why):
    assert case.reached() == ["read", "selective"]
    assert why in case.rungs()["causal"][1]
    assert case.rungs()["general"][0] == "not reached"


ONLY = {"over_null": True}


@pytest.mark.parametrize(
    ("claim", "change", "changes", "why"),
    [
        ("push both ways", ONLY, (-1.0, 1.0), None),
        ("push both ways", ONLY, (-1.0, -0.2), ONE_WAY),  # less of a fall than along directions with nothing to find
        ("push both ways", ONLY, (-0.2, 1.0), ONE_WAY),
        ("push slope", ONLY, (-0.2, 1.0), None),
        ("push slope", ONLY, (1.0, -1.0), NOT_MOVED),
        ("push slope", ONLY | {"op": "<"}, (1.0, -1.0), None),
        ("push slope", ONLY | {"quantity": "change", "strength": 2.0}, (-1.0, 1.0), None),
        ("push slope", ONLY | {"quantity": "change", "strength": 2.0}, (-1.0, 0.2), NOT_MOVED),
        ("push slope", ONLY | {"quantity": "change", "strength": -2.0, "op": "<"}, (-1.0, 0.2), None),
        ("push slope", ONLY | {"quantity": "change", "strength": -2.0}, (-1.0, 1.0), NOT_MOVED),
    ],
)
def test_what_beats_its_null_alone_while_the_effect_goes_elsewhere_is_no_push(claim, change, changes, why):
    first, last = changes
    case = LOW.claim(claim, **change).experiment("push", points=(point(-2.0, first), point(2.0, last)))
    if claim == "push slope" and why == NOT_MOVED:
        case = case.without("push both ways")
    assert (why is None) == ("causal" in case.reached())
    assert why is None or why in case.rungs()["causal"][1]


def test_the_score_of_a_detector_is_no_behaviour():
    case = LOW.experiment("push", scored="another").experiment("again", scored="another")
    assert case.reached() == ["read", "selective"]
    assert "nothing that the model says" in case.rungs()["causal"][1]


def test_what_an_audit_claims_that_failed_as_a_tool_shows_nothing():
    assert replace(HIGH, audit=AUDIT.model_copy(update={"verdict": Verdict.ERROR, "error": "it broke"})).reached() == []


def ablated(op: str = "<", *, effect: str = "logit difference", nulls=(BEATEN,), action: str = "project_out", at: float = 1.0, push=None) -> Case:
    """Steered along without a sign reversal, where the claim differs as `push` says, and ablated."""
    case = LOW.without("push both ways").claim("push slope", **(push or {}))
    claim = claim_of("take", HOME, "change", op, 0.0, reading=TAKE, strength=at, nulls=nulls)
    return replace(case, claims=case.claims | {"take": claim}, experiments=case.experiments | {"take": experiment_of(TAKE, HOME, (at,), action, effect)})


DOWN = {"op": "<"}
AT_LOW = {"quantity": "change", "strength": -2.0}


@pytest.mark.parametrize(
    "case",
    [ablated(), ablated(action="clamp", at=0.0), ablated(">", push=DOWN), ablated(">", push=AT_LOW), ablated(push=AT_LOW | DOWN)],
)
def test_an_ablation_that_does_the_opposite_stands_for_the_other_way(case):
    assert case.reached() == ["read", "selective", "causal"]
    assert "take" in case.rungs()["causal"][2]


@pytest.mark.parametrize(
    "case",
    [
        ablated(">"),
        ablated("<", push=DOWN),
        ablated("<", push=AT_LOW),
        ablated(">", push=AT_LOW | DOWN),
        ablated(effect="another"),
        ablated(nulls=(UNBEATEN,)),
        ablated(action="clamp", at=0.5),
    ],
)
def test_an_ablation_that_does_the_same_or_something_else_does_not(case):
    assert case.reached() == ["read", "selective"]
    assert ONE_WAY in case.rungs()["causal"][1]


def test_a_clamp_at_0_is_no_push():
    case = LOW.without("push both ways").claim("push slope", quantity="change", op="<", strength=0.0).experiment("push", action="clamp")
    assert NOT_MOVED in case.rungs()["causal"][1]


def test_of_two_experiments_neither_lends_the_other_its_claims():
    case = HIGH.without("push kl low", "again kl high")
    assert case.reached() == ["read", "selective"]
    assert HIGH.without("push kl low").reached() == ["read", "selective", "causal", "general"]


ELSEWHERE = "on suites that took no part in making it, "


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (LOW, ELSEWHERE),
        (HIGH.without("tells away"), f"{ELSEWHERE}no claim that passed shows that it tells its classes apart"),
        (HIGH.without("again both ways"), f"{ELSEWHERE}no claim that passed shows"),
        (HIGH.claim("tells away", apart=False), f"{ELSEWHERE}no claim that passed shows that it tells its classes apart"),
        (HIGH.suite(AWAY, origin=sha("pairs")), f"{ELSEWHERE}no claim that passed shows that it tells its classes apart"),
        (HIGH.suite(BENIGN, origin=sha("pairs")).suite(MATCHED, origin=sha("pairs")), f"{ELSEWHERE}no claim that passed shows that it stays quiet"),
        (HIGH.made(seen=(sha("pairs[train]"), sha(AWAY))), f"{ELSEWHERE}no claim that passed shows that it tells its classes apart"),
        (HIGH.made(kind="direction"), "it was found elsewhere"),
    ],
)
def test_what_is_not_shown_elsewhere_is_not_general(case, why):
    assert case.reached() == ["read", "selective", "causal"]
    assert case.rungs()["general"][1].startswith(why)


def test_a_baseline_that_does_as_well_is_named():
    def against(name, low):
        return BaselineRecord(name=name, value=0.8, low=0.7, high=0.9, difference=0.1, difference_low=low, difference_high=0.2)

    case = LOW.claim("tells", baselines=(against("length", 0.05), against("bag of words", 0.0)))
    assert case.rungs()["read"][1] == "shown by a claim; not shown to be better than what sees no internals: bag of words"


def test_a_detector_without_a_claim_has_no_ladder():
    assert ladders([DETECTOR], list(HIGH.suites.values()), [], [AUDIT], [HIGH.claims["tells"].model_copy(update={"detector_digest": sha("x")})]) == ()
