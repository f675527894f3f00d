"""The parts of a run make one whole, whoever left them and in whatever order; what is missing or contradicts itself is never a PASS."""

import numpy as np
import pytest

from mi_audit.errors import EvidenceError
from mi_audit.evidence.assembly import NEVER_RAN, assemble
from mi_audit.evidence.parts import AuditOutline, Outline, Part, PartRecord
from mi_audit.evidence.records import AuditHead
from mi_audit.evidence.samples import Arm, SampleTable
from mi_audit.evidence.shards import PartsFolder
from mi_audit.evidence.tokens import TokenTable
from mi_audit.stats.verdict import Verdict
from tests.unit import bundles


def outline_of(content: bundles.Content, **more) -> Outline:
    run = content.run
    used = {audit.id: tuple(dict.fromkeys(claim.detector_digest for claim in run.claims if claim.audit == audit.id)) for audit in run.audits}
    audits = [
        AuditOutline(**{name: getattr(audit, name) for name in AuditHead.model_fields}, node=audit.id, faults=(), detectors=used[audit.id])
        for audit in run.audits
    ]
    fields = {
        "plan": run.plan,
        "plugins": run.plugins,
        "audits": audits,
        "partial": run.partial,
        "broken": (),
        "texts_shown": run.texts_shown,
        "lines": ("the plan",),
    }
    return Outline(**fields | more)


def parts_of(content: bundles.Content) -> list[Part]:
    """A part for each audit, as if each had been judged in a process of its own: with all that it rests on."""
    run = content.run
    parts = []
    for place, audit in enumerate(run.audits):
        claims = [claim for claim in run.claims if claim.audit == audit.id]
        readings = [reading for reading in run.readings if reading.id in {claim.reading for claim in claims}]
        detectors = [detector for detector in run.detectors if detector.digest in {reading.detector_digest for reading in readings}]
        record = PartRecord(
            place=place,
            audit=audit,
            claims=claims,
            model=run.model,
            suites=run.suites if claims else (),
            detectors=detectors,
            readings=readings,
            sampled=[reading.id for reading in readings],
            seconds={"forward passes": 1.5},
            cache={"prompts found": 2},
            cache_trouble="full" if place else None,
        )
        samples, tokens = SampleTable(), TokenTable(texts_shown=run.texts_shown)
        for reading in readings:
            samples.adopt(reading.id, content.samples.readings[reading.id])
            if reading.id in content.tokens.readings:
                tokens.adopt(reading.id, content.tokens.readings[reading.id])
        parts.append(Part(record, samples, tokens, {detector.file: content.files[detector.file] for detector in detectors}))
    return parts


def changed(part: Part, **records) -> Part:
    return Part(part.record.model_copy(update=records), part.samples, part.tokens, part.files)


def files_of(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def written(whole, directory):
    bundles.Content(whole.run, bundles.volatile(), whole.samples, whole.tokens, dict(whole.files)).write(directory)
    return files_of(directory)


def test_parts_make_the_whole_in_the_order_of_the_plan(tmp_path):
    content = bundles.realistic()
    whole = assemble(outline_of(content), parts_of(content)[::-1])
    expected = content.run.model_copy(update={"suites": tuple(sorted(content.run.suites, key=lambda suite: suite.name))})
    by_id = {reading.id: reading for reading in whole.run.readings}
    assert whole.run.model_copy(update={"readings": expected.readings, "detectors": expected.detectors}) == expected
    assert [by_id[reading.id] for reading in expected.readings] == list(expected.readings)
    assert whole.seconds == {"forward passes": 1.5 * len(content.run.audits)}
    assert whole.cache == {"prompts found": 2 * len(content.run.audits)}
    assert whole.troubles == ("full",)


def test_the_folder_of_many_processes_gives_the_bytes_of_one(tmp_path):
    content = bundles.realistic()
    outline, parts = outline_of(content), parts_of(content)
    alone = written(assemble(outline, parts), tmp_path / "alone")
    workers = [PartsFolder(tmp_path / "parts", f"gw{number}") for number in range(2)]
    for worker in workers:
        worker.fix_plan(outline)
    for number, part in enumerate(parts[::-1]):
        assert workers[number % 2].begin(part.record.place) == 0
        workers[number % 2].add(part)
    (tmp_path / "parts" / ".0.gw7.123").mkdir()
    (tmp_path / "parts" / ".0.gw7.123" / "part.json").write_text("{half")
    folder = PartsFolder(tmp_path / "parts")
    together = written(assemble(folder.outline(), folder.parts()), tmp_path / "together")
    assert together == alone
    assert workers[1].begin(0) == 0, "an audit that came to an end is not counted as a death"
    assert workers[0].begin(0) == 1
    folder.remove()
    assert not (tmp_path / "parts").exists()


def test_large_readings_survive_the_folder(tmp_path):
    """Beyond a row group, and beyond what Parquet keeps in a dictionary page."""
    content = bundles.large(n=130_000, audits=2)
    folder = PartsFolder(tmp_path / "parts", "gw0")
    folder.fix_plan(outline_of(content))
    for part in parts_of(content):
        folder.add(part)
    alone = written(assemble(outline_of(content), parts_of(content)), tmp_path / "alone")
    assert written(assemble(folder.outline(), folder.parts()), tmp_path / "together") == alone


def test_an_audit_without_a_part_is_an_error_and_its_instrument_bears_nothing():
    content = bundles.passing()
    parts = parts_of(content)
    assert assemble(outline_of(content), parts).run.exit_code == 0
    instrument, model = content.run.audits
    run = assemble(outline_of(content), parts[1:]).run
    assert [(audit.id, audit.verdict, audit.error) for audit in run.audits] == [
        (instrument.id, Verdict.ERROR, NEVER_RAN),
        (model.id, Verdict.INCONCLUSIVE, None),
    ]
    assert [claim.reasons for claim in run.claims] == [(f"the audit of the instrument {instrument.id} did not run to its end",)]
    assert (run.verdict, run.exit_code) == (Verdict.ERROR, 12)


def test_an_instrument_that_is_an_error_or_was_not_planned_bears_nothing():
    content = bundles.passing()
    first, second = parts_of(content)
    failed = changed(first, audit=first.record.audit.model_copy(update={"verdict": Verdict.ERROR, "error": "KeyError: 'x'"}))
    run = assemble(outline_of(content), [failed, second]).run
    assert [claim.verdict for claim in run.claims] == [Verdict.PASS, Verdict.INCONCLUSIVE]
    assert run.audits[1].verdict is Verdict.INCONCLUSIVE
    undecided = changed(first, claims=(first.record.claims[0].model_copy(update={"verdict": Verdict.INCONCLUSIVE}),))
    run = assemble(outline_of(content), [undecided, second]).run
    assert [audit.verdict for audit in run.audits] == [Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE]
    assert "is not shown to work" in run.claims[1].reasons[-1]
    assert run.exit_code == 10


def test_a_failed_claim_stays_failed_whatever_its_instrument():
    content = bundles.passing()
    _, second = parts_of(content)
    fails = changed(second, claims=(second.record.claims[0].model_copy(update={"verdict": Verdict.FAIL, "threshold": 0.001}),))
    run = assemble(outline_of(content), [fails]).run
    assert run.claims[0].verdict is Verdict.FAIL
    assert run.exit_code == 1


def test_a_broken_file_is_an_error_of_the_run(tmp_path):
    content = bundles.passing()
    whole = assemble(outline_of(content), parts_of(content), ["audit_broken.py"])
    assert (whole.run.verdict, whole.run.exit_code) == (Verdict.ERROR, 12)
    assert whole.run.partial == ("audit_broken.py could not be collected",)
    assert written(whole, tmp_path / "out")


def drawn(value: float, pairs=None) -> SampleTable:
    table = SampleTable()
    names = {"prompt_ids": ["a", "b"], "digests": ["a", "b"], "groups": ["a", "b"]}
    table.add(READING, **names, labels=[True, False], token_index=[0, 0], arms=[Arm("detector", np.array([[value, 1.0]]))], pairs=pairs)
    return table


READING = bundles.passing().run.readings[0].id


def measured(value: float, pairs=None) -> Part:
    part = parts_of(bundles.passing())[0]
    return Part(part.record, drawn(value, pairs), part.tokens, part.files)


def test_processes_that_measured_differently_leave_no_evidence():
    content = bundles.passing()
    outline, first = outline_of(content), parts_of(content)[0]
    detector = first.record.detectors[0]
    with pytest.raises(EvidenceError, match="disagree on the reading of dishonesty on pairs"):
        assemble(outline, [measured(0.5), measured(np.nextafter(0.5, 1))])
    with pytest.raises(EvidenceError, match="disagree on the detector dishonesty: its file_digest differs"):
        assemble(outline, [first, changed(first, detectors=(detector.model_copy(update={"file_digest": bundles.sha("other")}),))])
    with pytest.raises(EvidenceError, match="disagree on the model: its root differs"):
        assemble(outline, [first, changed(first, model=bundles.model(root=bundles.sha("other")))])
    with pytest.raises(EvidenceError, match="belongs to another plan"):
        assemble(outline, [changed(first, place=1)])
    two = assemble(outline, [changed(first, model=bundles.model(device=f"cuda:{number}")) for number in (1, 0)])
    assert two.run.model.device == "cuda:0, cuda:1"


def test_pairs_are_kept_where_only_one_process_needed_them():
    outline = outline_of(bundles.passing())
    for parts in ([measured(0.5), measured(0.5, ["p", "p"])], [measured(0.5, ["p", "p"]), measured(0.5)]):
        assert assemble(outline, parts).samples.table()["pair"].to_pylist() == ["p", "p"]
    with pytest.raises(EvidenceError, match="its numbers differ"):
        assemble(outline, [measured(0.5, ["p", "p"]), measured(0.5, ["p", "q"])])


def test_workers_that_planned_differently_are_told_apart(tmp_path):
    content = bundles.passing()
    plan = content.run.plan.model_copy(update={"digest": bundles.sha("another plan")})
    PartsFolder(tmp_path, "gw0").fix_plan(outline_of(content))
    PartsFolder(tmp_path, "gw1").fix_plan(outline_of(content, plan=plan))
    with pytest.raises(EvidenceError, match="made different plans"):
        PartsFolder(tmp_path).outline()


def test_a_damaged_part_and_a_lost_folder_are_errors(tmp_path):
    content = bundles.passing()
    folder, (first, second) = PartsFolder(tmp_path / "parts", "gw0"), parts_of(content)
    folder.fix_plan(outline_of(content))
    folder.add(first)
    weights = next((tmp_path / "parts").rglob("*.safetensors"))
    weights.write_bytes(b"other weights")
    with pytest.raises(EvidenceError, match="SHA-256 differs"):
        list(folder.parts())
    weights.unlink()
    with pytest.raises(EvidenceError, match="No such file"):
        list(folder.parts())
    folder.remove()
    with pytest.raises(EvidenceError, match="No such file"):
        folder.add(second)
