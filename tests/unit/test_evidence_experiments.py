"""No claim rests on what an experiment did not give, and the parts of an experiment make one whole."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mi_audit.errors import EvidenceError
from mi_audit.evidence import consistency
from mi_audit.evidence.assembly import assemble
from mi_audit.evidence.experiments import condition
from mi_audit.evidence.parts import Part
from mi_audit.evidence.samples import SampleTable
from mi_audit.evidence.shards import PartsFolder
from tests.unit import bundles, bundles_dose
from tests.unit.test_assembly import outline_of, parts_of, written
from tests.unit.test_evidence_saes import POOR, SAE

SLOPE, LEAST, DOWN, UP, KL, OTHER = 2, 4, 6, 7, 8, 10
"""Places among the claims; the last is of the experiment that has a strength that failed."""


@pytest.fixture(scope="module")
def content():
    return bundles_dose.experiments()[2]


@pytest.fixture(scope="module")
def run(content):
    return content.run


def claimed(run, place, **change):
    return run.model_copy(update={"claims": (*run.claims[:place], run.claims[place].model_copy(update=change), *run.claims[place + 1 :])})


def experimented(run, place, **change):
    changed = run.experiments[place].model_copy(update=change)
    return run.model_copy(update={"experiments": (*run.experiments[:place], changed, *run.experiments[place + 1 :])})


def pointed(run, place, **change):
    """The first experiment with another point."""
    points = run.experiments[0].points
    return experimented(run, 0, points=(*points[:place], points[place].model_copy(update=change), *points[place + 1 :]))


def ranked(run, place, **change):
    """A claim whose deciding null is otherwise ranked."""
    first, *others = run.claims[place].nulls
    return claimed(run, place, nulls=(first.model_copy(update=change), *others))


def test_the_run_stands(run):
    assert [(run.claims[place].quantity, run.claims[place].op) for place in (SLOPE, LEAST, DOWN, UP, KL, OTHER)] == [
        ("slope", ">"),
        ("smallest_step", ">"),
        ("change", "<="),
        ("change", ">"),
        ("kl", "<="),
        ("change", ">="),
    ]
    assert {claim.verdict for claim in run.claims} == {"PASS"}
    consistency.check(run)


UNBEATEN = {"k": 61, "p": 0.62, "passed": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: ranked(run, SLOPE, **UNBEATEN), "PASS without beating its nulls"),
        (lambda run: ranked(run, DOWN, **UNBEATEN), "PASS without beating its nulls"),
        (lambda run: claimed(run, SLOPE, nulls=()), "PASS without a null"),
        (lambda run: claimed(run, DOWN, nulls=()), "PASS without a null"),
        (lambda run: ranked(run, SLOPE, downward=True), "is ranked towards the other side"),
        (lambda run: ranked(run, DOWN, downward=False), "is ranked towards the other side"),
        (lambda run: claimed(run, SLOPE, reading=bundles.sha("none")), "not recorded"),
        (lambda run: claimed(run, SLOPE, suite="another"), "names another detector or suite than its experiment"),
        (lambda run: claimed(run, SLOPE, n=61), "counts 61 prompts, its experiment 60"),
        (lambda run: claimed(run, SLOPE, reading=run.experiments[1].id), "rests on an experiment, or a strength of it, that was not finished"),
        (lambda run: claimed(run, OTHER, strength=4.0), "rests on an experiment, or a strength of it, that was not finished"),
        (lambda run: claimed(run, OTHER, strength=2.0), "rests on an experiment, or a strength of it, that was not finished"),
        (lambda run: experimented(run, 1, error="out of memory"), "rests on an experiment, or a strength of it, that was not finished"),
        (lambda run: claimed(run, DOWN, strength=1.0), "is not of the change that its experiment gives at the strength 1"),
        (lambda run: claimed(run, KL, strength=3.0), "is not of the kl that its experiment gives at the strength 3"),
        (lambda run: claimed(run, KL, high=0.01), "is not of the kl that its experiment gives at the strength 1"),
        (lambda run: claimed(run, KL, on="another"), "is not of the kl that its experiment gives"),
        (lambda run: claimed(run, KL, n=13), "is not of the kl that its experiment gives"),
        (lambda run: claimed(run, KL, on=None), "is about kl, measured on the suite of the experiment itself"),
        (lambda run: claimed(run, SLOPE, on=bundles_dose.NEUTRAL), "is about slope, measured on neutral_text"),
        (lambda run: claimed(run, SLOPE, quantity="auroc"), "is about auroc, measured on the suite of the experiment itself"),
        (lambda run: claimed(run, SLOPE, strength=1.0), "is about slope at the strength 1"),
        (lambda run: claimed(run, KL, strength=None), "is about kl of all strengths"),
        (lambda run: claimed(run, 0, quantity="slope"), "rests on a reading, and can only rest on an experiment"),
        (lambda run: claimed(run, 0, strength=1.0), "rests on a reading, and can only rest on an experiment"),
        (lambda run: pointed(run, 0, high=run.experiments[0].points[0].change - 0.1), "a change at the strength -2 that does not lie in its interval"),
        (lambda run: pointed(run, 0, low=run.experiments[0].points[0].change + 0.1), "a change at the strength -2 that does not lie in its interval"),
        (lambda run: pointed(run, 1, low=None), "a change at the strength -1 that does not lie in its interval"),
        (lambda run: pointed(run, 1, failed="not finite"), "a change at the strength -1 that does not lie in its interval"),
        (lambda run: pointed(run, 1, strength=-3.0), "do not ascend"),
        (lambda run: experimented(run, 2, points=()), "do not ascend"),
        (lambda run: experimented(run, 0, detector_digest=bundles.sha("none")), "experiment .* uses the detector 'dishonesty', which is not recorded"),
        (lambda run: experimented(run, 0, suite_digest=bundles.sha("none")), "experiment .* uses the suite 'questions', which is not recorded"),
        (lambda run: experimented(run, 0, id=run.readings[0].id), "is recorded 2 times"),
        (lambda run: run.model_copy(update={"suites": run.suites[:-1]}), "a side effect on a suite that is not recorded"),
        (lambda run: run.model_copy(update={"suites": run.suites[1:]}), "was made from a suite that is not recorded"),
        (lambda run: run.model_copy(update={"detectors": (run.detectors[0].model_copy(update={"seen": ()}),)}), "is not among the suites that it has seen"),
        (lambda run: experimented(run, 0, sae=SAE), "experiment .* has a record of a sparse autoencoder"),
        (lambda run: clamped(run, None), "experiment .* has no record of a sparse autoencoder"),
        (lambda run: clamped(run, SAE.model_copy(update=POOR)), "is PASS on latents of a sparse autoencoder that does not reach its floors"),
        (lambda run: clamped(run, SAE.model_copy(update={**POOR, "below": ()})), "experiment .*: its sparse autoencoder 'resid_15' misses its floors"),
        (lambda run: of_little(run), "about the model is PASS, but nothing shows that 'dishonesty' moves any effect"),
        (lambda run: run.model_copy(update={"ladders": ()}), "evidence ladders are not those"),
        (lambda run: raised(run), "evidence ladders are not those"),
    ],
)
def test_what_an_experiment_does_not_give_is_refused(run, change, message):
    with pytest.raises(EvidenceError, match=message):
        consistency.check(change(run))


def clamped(run, sae):
    """The same of latents, whose experiments have such a record; their readings are fine."""
    detectors = tuple(each.model_copy(update={"kind": "latent"}) for each in run.detectors)
    readings = tuple(each.model_copy(update={"sae": SAE}) for each in run.readings)
    experiments = tuple(each.model_copy(update={"sae": sae}) for each in run.experiments)
    return run.model_copy(update={"detectors": detectors, "readings": readings, "experiments": experiments})


def of_little(run):
    """Nothing is claimed of experiments but that the model's predictions change little."""
    made, little = {each.id for each in run.experiments}, run.claims[KL].model_copy(update={"about": "model"})
    claims = (*(claim for claim in run.claims if claim.reading not in made), little)
    kept = {claim.id for claim in claims}
    audits = tuple(each.model_copy(update={"claims": tuple(claim for claim in each.claims if claim in kept)}) for each in run.audits)
    return run.model_copy(update={"claims": claims, "audits": audits})


def raised(run):
    """The ladder with its first missing rung declared to be reached."""
    (ladder,) = run.ladders
    rungs = list(ladder.rungs)
    place = next(place for place, rung in enumerate(rungs) if rung.reached == "not reached")
    rungs[place] = rungs[place].model_copy(update={"reached": "reached"})
    return run.model_copy(update={"ladders": (ladder.model_copy(update={"rungs": tuple(rungs)}),)})


@pytest.mark.parametrize("of", ["experiment", "side effect"])
@pytest.mark.parametrize("change", ["lacks", "repeats", "renames"])
def test_a_sample_table_that_lacks_a_strength_is_refused(content, tmp_path, of, change):
    record = content.run.experiments[0]
    name = record.id if of == "experiment" else record.side_effects[0].id
    samples = SampleTable()
    for measurement, rows in content.samples.readings.items():
        if measurement == name:
            chosen = pc.and_(pc.equal(rows["condition"], condition(1.0)), pc.equal(rows["arm"], "detector"))
            if change == "lacks":
                rows = rows.filter(pc.invert(chosen))
            else:
                other = condition(-1.0 if change == "repeats" else 2.0)
                names = [other if replaced else name for name, replaced in zip(rows["condition"].to_pylist(), chosen.to_pylist(), strict=True)]
                place = rows.schema.get_field_index("condition")
                rows = rows.set_column(place, rows.schema.field(place), pa.array(names).dictionary_encode())
        samples.adopt(measurement, rows)
    with pytest.raises(EvidenceError, match="of each prompt as it is and at each strength"):
        bundles.Content(content.run, content.volatile, samples, content.tokens, content.files).write(tmp_path / "out")


def with_experiments(content, place, experiments, rows):
    """The part at a place of the plan, as if made in a process of its own, with these experiments and their rows by measurement."""
    part, samples = parts_of(content)[place], SampleTable()
    for name, table in {**part.samples.readings, **rows}.items():
        samples.adopt(name, table)
    more = {"experiments": tuple(experiments), "sampled": tuple(samples.readings), "detectors": content.run.detectors}
    return Part(part.record.model_copy(update=more), samples, part.tokens, content.files)


def halves(content, first=None, second=None, first_rows=None, second_rows=None):
    """The run in three parts; the first experiment is in the last two, measured in each with another side effect, or as given."""
    every = content.samples.readings
    whole, *others = content.run.experiments
    one, other = (whole.model_copy(update={"side_effects": (curve,)}) for curve in whole.side_effects)
    first, second = first or one, second or other
    rest = {name: every[name] for each in others for name in each.measurements}
    return [
        parts_of(content)[0],
        with_experiments(content, 1, [first], {name: every[name] for name in first.measurements} | (first_rows or {})),
        with_experiments(content, 2, [second, *others], rest | {name: every[name] for name in second.measurements} | (second_rows or {})),
    ]


def broken_off(content, error="out of memory"):
    """The first experiment without its nulls, and the rows of it."""
    whole = content.run.experiments[0]
    rows = content.samples.readings[whole.id]
    points = tuple(point.model_copy(update={"nulls": (), "direct": None}) for point in whole.points)
    less = {"points": points, "side_effects": (), "generations": (), "profile": (), "error": error}
    return whole.model_copy(update=less), {whole.id: rows.filter(pc.equal(rows["arm"], "detector"))}


def same(whole, content):
    """Whether the whole is the run, in whatever order the records are."""
    found = {each.id: each for each in whole.run.experiments}
    return [found[each.id] for each in content.run.experiments] == list(content.run.experiments) and whole.samples.table().equals(content.samples.table())


def test_side_effects_of_two_processes_become_one_record(content, tmp_path):
    parts, outline = halves(content), outline_of(content)
    whole = assemble(outline, parts)
    assert same(whole, content)
    assert whole.run.ladders == content.run.ladders
    alone = written(whole, tmp_path / "alone")
    folder = PartsFolder(tmp_path / "parts", "gw0")
    folder.fix_plan(outline)
    for part in parts[::-1]:
        folder.add(part)
    assert written(assemble(folder.outline(), folder.parts()), tmp_path / "together") == alone


def test_processes_that_measured_an_experiment_differently_leave_no_evidence(content):
    whole = content.run.experiments[0]
    rows = content.samples.readings[whole.id]
    values = np.array(rows["value"])
    values[7] = np.nextafter(values[7], 9.0)
    other = {whole.id: rows.set_column(rows.schema.get_field_index("value"), rows.schema.field("value"), [values])}
    curve = whole.side_effects[0]
    moved = curve.model_copy(update={"points": (curve.points[0].model_copy(update={"high": 0.9}), *curve.points[1:])})
    for parts, message in (
        (halves(content, second_rows=other), "disagree on the experiment on dishonesty and questions: its numbers differ"),
        (halves(content, first=whole.model_copy(update={"unsteered": 0.1})), "its unsteered differs"),
        (
            halves(content, second=whole.model_copy(update={"side_effects": (moved,)})),
            "the kl of the experiment on dishonesty and questions: its points differs",
        ),
    ):
        for order in (1, -1):
            with pytest.raises(EvidenceError, match=message):
                assemble(outline_of(content), parts[::order])


def test_what_was_broken_off_in_one_process_and_finished_in_another_is_finished(content):
    record, rows = broken_off(content)
    whole = content.run.experiments[0]
    for given in ({"first": whole, "second": record, "second_rows": rows}, {"first": record, "first_rows": rows, "second": whole}):
        parts = halves(content, **given)
        for order in (1, -1):
            assert same(assemble(outline_of(content), parts[::order]), content)


def test_what_was_broken_off_in_every_process_stays_so(content):
    (one, rows), (other, _) = broken_off(content, "out of memory"), broken_off(content, "interrupted")
    parts = halves(content, first=one, second=other, first_rows=rows, second_rows=rows)
    for order in (1, -1):
        whole = assemble(outline_of(content), parts[::order])
        assert next(each for each in whole.run.experiments if each.id == one.id) == other
        assert whole.samples.readings[one.id].equals(rows[one.id])
        with pytest.raises(EvidenceError, match="was not finished"):
            consistency.check(whole.run)


def test_rows_that_come_after_a_record_without_them_are_found(content):
    """A process leaves the rows with the first part that it makes, which may be read last."""
    record, rows = broken_off(content)
    whole, every = content.run.experiments[0], content.samples.readings
    again = with_experiments(content, 1, [whole], {})
    first, *parts = halves(content, first=record, first_rows=rows, second=whole)
    assert same(assemble(outline_of(content), [first, parts[0], again, parts[1]]), content)
    assert every[whole.id].num_rows > rows[whole.id].num_rows
