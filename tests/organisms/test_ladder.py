"""The evidence ladder on a model in which one direction is known to cause the answer, and another that is read as well is known to cause nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mi_audit as mi
from mi_audit.auditor import Auditor
from mi_audit.config import Settings
from mi_audit.evidence import store
from mi_audit.evidence.assembly import Assembled, assemble
from mi_audit.evidence.consistency import check
from mi_audit.evidence.parts import GatheredParts
from mi_audit.plan.audit import audit
from mi_audit.plan.planner import plan_audit
from mi_audit.recording import Recorder, outline_of
from mi_audit.session import Session
from tests.organisms.causes import LAYER, NEGATIVE, POSITIVE, suites_for, texts, train

SEEDS = 20
ENOUGH = 19
"""In each of which detectors of both kinds stop where they should; of 60 seeds 57 is the same share."""


@pytest.fixture(scope="module")
def organism(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("organisms") / "causes"
    assert train(folder) == 1.0
    return folder


def audits_of(seed: int, kind: str) -> Iterator[tuple[str, Callable[[Auditor], None]]]:
    """What an author writes who wants to know how far the evidence goes for a probe."""
    suites = suites_for(seed)
    suite = getattr(suites, kind)
    steered, benign = suite["test"].one_per_group(), suites.benign.head(40)
    # topics that hold both classes: four texts each, of the four pairs of classes
    which = ("cause", "decoration").index(kind)
    drawn = [(number, each.text, each.classes[which]) for number, each in enumerate(texts(100, seed + 7_000_003))]
    matched = mi.suite(
        [{"id": f"{number}", "text": text, "group": f"topic {number // 4}", "label": label} for number, text, label in drawn], name=f"{kind}_topics"
    )
    probe = mi.probe(
        f"{kind}_{seed}",
        method="difference_of_means",
        at=mi.at("resid_post", layer=LAYER),
        fit=suite["train"],
        threshold=mi.false_positive_rate(0.05, on=suite["calibration"]),
    )

    @audit(about="instrument")
    def audit_reads(model: Auditor) -> None:
        assert model.read(probe, matched).auroc() >= 0.9
        assert model.read(probe, suites.quiet).rate() <= 0.5

    @audit(about="instrument")
    def audit_causes(model: Auditor) -> None:
        sweep = model.steer(probe, on=steered, strengths=(-1, 1), effect=mi.effects.logit_difference(POSITIVE, NEGATIVE))
        assert sweep.slope() > sweep.null.slope()
        assert sweep.sign_reversal() > 0
        for strength in (-1, 1):
            assert sweep.at(strength).side_effects(on=benign).kl() <= 50

    yield f"audit_reads_{kind}_{seed}", audit_reads
    yield f"audit_causes_{kind}_{seed}", audit_causes


def run(model: Path, seeds: range, kinds: tuple[str, ...] = ("cause", "decoration")) -> Assembled:
    """What `pytest --audit-model` does of such audits, without pytest."""
    session, here = Session(Settings(model=str(model), no_cache=True)), Path(__file__)
    bodies = [each for seed in seeds for kind in kinds for each in audits_of(seed, kind)]
    planned = [
        plan_audit(
            body,
            file=here,
            root=here.parent,
            source_digest=store.hashlib.sha256(here.read_bytes()).hexdigest(),
            item_name=name,
            parameters={},
            takes_model=True,
            foreign_fixtures=(),
            stand_in=Auditor,
        )
        for name, body in bodies
    ]
    plan = session.fix_plan(planned)
    assert not [fault for each in plan.audits for fault in each.faults]
    recorder, parts = Recorder(session, plan), GatheredParts()
    parts.fix_plan(outline_of(session, plan, [each.id for each in plan.audits], [], []))
    auditor = session.open_model()
    for place, (each, (_, body)) in enumerate(zip(plan.audits, bodies, strict=True)):
        result, _ = session.judge.audit(each, lambda body=body: body(auditor))
        assert result.error is None, result.error
        parts.add(recorder.part(place, result))
    whole = assemble(parts.outline(), parts.parts())
    check(whole.run)
    return whole


def test_what_causes_reaches_causal_and_what_decorates_stops_at_selective(organism: Path) -> None:
    whole = run(organism, range(SEEDS))
    reached = {ladder.detector: [rung.name for rung in ladder.rungs if rung.reached == "reached"] for ladder in whole.run.ladders}
    cause = [reached[f"cause_{seed}"] for seed in range(SEEDS)]
    decoration = [reached[f"decoration_{seed}"] for seed in range(SEEDS)]
    assert sum(rungs == ["read", "selective", "causal"] for rungs in cause) >= ENOUGH
    assert sum(rungs == ["read", "selective"] for rungs in decoration) >= ENOUGH
