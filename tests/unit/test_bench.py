import json
import random

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.stats import rankdata

from mi_audit.detectors.bench import Bench
from mi_audit.detectors.fitted import load as load_detector
from mi_audit.detectors.methods import mi_audit_probe_methods
from mi_audit.detectors.quantities import null_statistics
from mi_audit.detectors.readings import BASELINE, NULL, Arm
from mi_audit.engine.capture import Site, capture
from mi_audit.errors import DetectorError
from mi_audit.model.load import load
from mi_audit.plan.detectors import direction, false_positive_rate, probe
from mi_audit.plan.measurements import DISCRIMINATES, EstimateSpec, ReadSpec
from mi_audit.plan.places import At, Tokens, at, last_of
from mi_audit.suites.suite import suite
from tests.agreement.tiny_models import save_tiny

AT = at("resid_post", depth=0.6)
LAYER = 2
ALPHA = 0.025


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    save_tiny(folder, "llama")
    return load(str(folder), progress=False)


def labelled(n=96, name="answers"):
    """Groups of four that hold both classes, which differ in a word."""
    draw = random.Random(name)
    return suite(
        [
            {
                "text": f"{draw.random():.6f} {'yes' if row % 2 else 'no'}",
                "label": bool(row % 2),
                "group": f"{name}{row // 4}",
                "pair": str(row // 2),
                "word": "yes" if row % 2 else "no",
            }
            for row in range(n)
        ],
        name=name,
    )


ANSWERS = labelled()
CALM = suite([{"text": f"calm {row}", "label": False} for row in range(60)], name="calm", fractions=(0, 0.5, 0.5))
RULE = false_positive_rate(0.1, on=CALM["calibration"])


def answers(method="difference_of_means", **changed):
    return probe("answers", **{"method": method, "at": AT, "fit": ANSWERS["train"], "threshold": RULE, **changed})


def bench(model, **changed):
    return Bench(model, **{"alpha": ALPHA, "seed": 3, **changed})


class Bar:
    def __init__(self):
        self.started, self.advanced, self.closed = [], 0, 0

    def start(self, prompts, tokens):
        self.started.append((prompts, tokens))

    def advance(self, prompts, tokens):
        self.advanced += prompts

    def close(self):
        self.closed += 1


def test_each_distinct_prompt_passes_once(model):
    bar = Bar()
    one = bench(model, progress=bar)
    deeper = probe("deeper", method="mass_mean", at=at("mlp_out", depth=1.0), tokens="all", fit=ANSWERS["train"])
    worded = probe("worded", method="logistic", at=AT, tokens=last_of("word"), fit=ANSWERS["train"])
    readings = [ReadSpec(detector, part) for detector in (answers(), deeper, worded) for part in (ANSWERS["test"], ANSWERS["calibration"])]
    readings += [ReadSpec(answers(), CALM["test"]), ReadSpec(deeper, CALM)]
    one.prepare(readings)
    distinct = len({prompt.digest for part in (ANSWERS, CALM) for prompt in part})
    assert one.captured.prompts == bar.advanced == distinct
    assert [prompts for prompts, _ in bar.started] == [distinct]
    assert bar.closed == 1
    for reading in readings:
        one.read(reading)
        one.estimate(EstimateSpec(reading, "mean"))
    assert one.captured.prompts == distinct
    assert one.read(readings[0]) is one.read(readings[0])
    assert one.detector(worded) is one.detector(worded)


def test_equal_texts_with_other_fields_are_read_at_their_own_token(model):
    text = "no then yes"
    suites = {
        word: suite([{"text": text, "word": word, "label": True}, {"text": "no or yes", "word": word, "label": False}], name=word) for word in ("no", "yes")
    }
    one = bench(model)
    detector = answers(tokens=last_of("word"), fit=labelled(name="other"), threshold=0)
    readings = {word: ReadSpec(detector, each, controls=False) for word, each in suites.items()}
    one.prepare(readings.values())
    prepared = one.captured
    read = {word: one.read(reading) for word, reading in readings.items()}
    assert one.captured == prepared
    assert [data.token_index[0] - read["no"].token_index[0] for data in read.values()] == [0, len(" then yes")]
    assert read["no"].values[0] != read["yes"].values[0]


@pytest.mark.parametrize("method", mi_audit_probe_methods())
def test_a_reading_is_what_numpy_makes_of_the_captures(model, method):
    one, site = bench(model), Site(At("resid_post", layer=LAYER), Tokens("last"))
    reading = one.read(ReadSpec(answers(method), ANSWERS["test"]))
    fit, test, calm = (
        capture(model, part.prompts, [site]).vectors(site).astype(np.float64) for part in (ANSWERS["train"], ANSWERS["test"], CALM["calibration"])
    )
    labels = np.array(ANSWERS["train"].labels())
    detector = one.detector(answers(method))
    assert detector.at == site.at
    if method == "difference_of_means":
        theta = fit[labels].mean(axis=0) - fit[~labels].mean(axis=0)
        np.testing.assert_allclose(detector.weight, theta / np.linalg.norm(theta), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(detector.centre, fit.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reading.values, (test - detector.centre) @ detector.weight, rtol=1e-4, atol=1e-5)
    scores = np.sort((calm - detector.centre) @ detector.weight)
    assert reading.threshold == pytest.approx(scores[int(np.ceil(0.9 * (len(scores) + 1))) - 1], rel=1e-4)
    assert detector.card["n"] == len(labels)
    assert detector.card["negatives"] == len(CALM["calibration"])


def test_estimates_carry_their_controls(model):
    one, spec = bench(model), ReadSpec(answers(), ANSWERS["test"])
    reading = one.read(spec)
    labels, names = reading.labels, [arm.name for arm in reading.arms]
    assert names == ["detector", "null: shuffled labels", "null: random directions", "baseline: length", "baseline: bag of words", "baseline: embedding"]
    site = Site(At("resid_post", layer=LAYER), Tokens("last"))
    assert abs(reading.arms[3].values[0]).tolist() == capture(model, ANSWERS["test"].prompts, [site]).n_tokens.tolist()
    estimate = one.estimate(EstimateSpec(spec, "auroc"))
    assert estimate.of == "answers on answers[test]"
    assert estimate.spec == EstimateSpec(spec, "auroc")
    shuffled, drawn = (
        np.array([rankdata(values)[flags].sum() for values, flags in zip(arm.values, given, strict=True)])
        for arm, given in ((reading.of_kind(NULL)[0], reading.of_kind(NULL)[0].labels), (reading.of_kind(NULL)[1], [labels] * 99))
    )
    observed = rankdata(reading.values)[labels].sum()
    assert [null.k for null in estimate.controls.nulls] == [(shuffled >= observed).sum(), (drawn >= observed).sum()]
    pairs, least = labels.sum() * (~labels).sum(), labels.sum() * (labels.sum() + 1) / 2
    assert estimate.controls.selectivity == pytest.approx(estimate.value - (shuffled.mean() - least) / pairs)
    for arm, baseline in zip(reading.of_kind(BASELINE), estimate.controls.baselines, strict=True):
        assert baseline.value == pytest.approx((rankdata(arm.values[0])[labels].sum() - least) / pairs)
        assert baseline.difference == pytest.approx(estimate.value - baseline.value)
    recall = one.estimate(EstimateSpec(spec, "recall"))
    shuffled = reading.of_kind(NULL)[0]
    assert shuffled.values.shape == (99, len(labels))
    fired = shuffled.values > shuffled.thresholds[:, None]
    np.testing.assert_allclose(recall.controls.nulls[0].statistics, (fired & shuffled.labels).sum(axis=1) / shuffled.labels.sum(axis=1))
    assert (shuffled.labels.sum(axis=1) == labels.sum()).all()
    assert len(set(shuffled.thresholds)) > 90


@pytest.mark.parametrize("quantity", sorted(DISCRIMINATES))
def test_a_draw_within_rounding_of_what_was_observed_is_a_tie(model, quantity):
    spec = EstimateSpec(ReadSpec(answers(), ANSWERS["test"]), quantity, "pair" if quantity == "paired_difference" else None)
    one = bench(model)
    estimate, reading = one.estimate(spec), one.read(spec.reading)
    rounded = Arm("null: rounded", np.array([reading.values * (1 - 1e-13)]), np.array([reading.threshold * (1 - 1e-13)]))
    assert null_statistics(spec, estimate, reading, rounded) == (estimate.value,)


@pytest.mark.parametrize("quantity", sorted(DISCRIMINATES - {"recall", "accuracy"}))
def test_what_separates_perfectly_beats_the_null_and_what_says_nothing_does_not(model, quantity):
    coin = [{"text": prompt.text, "label": bool(random.Random(prompt.text).random() < 0.5), "group": prompt.group} for prompt in ANSWERS]
    coin = [dict(row, pair=str(place // 2), label=row["label"] if place % 2 == 0 else not coin[place - 1]["label"]) for place, row in enumerate(coin)]
    for rows, beaten in ((ANSWERS, True), (suite(coin, name="coin"), False)):
        spec = EstimateSpec(ReadSpec(answers(fit=rows["train"]), rows["test"]), quantity, "pair" if quantity == "paired_difference" else None)
        shuffled = bench(model).estimate(spec).controls.nulls[0]
        assert shuffled.passed == beaten, shuffled.p


def test_controls_are_for_what_tells_classes_apart_and_can_be_switched_off(model):
    one = bench(model)
    assert one.estimate(EstimateSpec(ReadSpec(answers(), ANSWERS["test"]), "rate")).controls is None
    off = ReadSpec(answers(), ANSWERS["test"], controls=False)
    assert one.estimate(EstimateSpec(off, "auroc")).controls is None
    assert len(one.read(off).arms) == 1
    assert len(one.read(ReadSpec(answers(), CALM["test"])).arms) == 1
    positives = one.estimate(EstimateSpec(ReadSpec(answers(), ANSWERS["test"].where(label=True)), "recall"))
    assert [(null.name, null.draws) for null in positives.controls.nulls] == [("random directions", 99)]
    assert positives.controls.baselines == ()
    assert len(bench(model, alpha=0.005).read(ReadSpec(answers(), ANSWERS["test"])).arms[1].values) == 199


def test_same_seed_same_bytes(model):
    def run(**changed):
        one = bench(model, **changed)
        reading = one.read(ReadSpec(answers(), ANSWERS["test"]))
        return one.detector(answers()).to_bytes(), [(arm.name, arm.values.tobytes()) for arm in reading.arms]

    first, again, other = run(), run(), run(seed=4)
    assert first == again
    assert first[0] == other[0]
    assert {name for (name, values), (_, others) in zip(first[1], other[1], strict=True) if values != others} == {
        "null: shuffled labels",
        "null: random directions",
    }


def test_the_limit_is_for_what_is_read(model):
    whole, part = bench(model), bench(model, limit=10)
    spec = ReadSpec(answers(), ANSWERS["test"])
    reading = part.read(spec)
    assert len(reading.values) == len(reading.ids) == len(reading.labels) == len(reading.token_index) == 10
    assert sum(reading.labels) == 5
    assert part.detector(answers()).to_bytes() == whole.detector(answers()).to_bytes()
    rows = [whole.read(spec).ids.index(each) for each in reading.ids]
    np.testing.assert_allclose(reading.values, whole.read(spec).values[rows], rtol=1e-4, atol=1e-5)
    assert part.captured.prompts == len(ANSWERS["train"]) + len(CALM["calibration"]) + 10


def test_a_saved_probe_serves_as_a_direction(model, tmp_path):
    one, file = bench(model), tmp_path / "answers.safetensors"
    fitted = one.detector(answers())
    fitted.save(file)
    assert (load_detector(file, answers(), model.identity.root, width=model.d_model).weight == fitted.weight).all()
    spec = ReadSpec(direction("borrowed", file, at=AT, threshold=RULE), ANSWERS["test"])
    reading = one.read(spec)
    assert (reading.values == one.read(ReadSpec(answers(), ANSWERS["test"])).values).all()
    assert reading.threshold == fitted.threshold
    assert [arm.name for arm in reading.arms] == ["detector", "null: shuffled labels", "null: random directions", "baseline: length"]
    assert (reading.arms[1].values == reading.values).all()
    controls = one.estimate(EstimateSpec(spec, "auroc")).controls
    assert [(null.name, null.decides) for null in controls.nulls] == [("shuffled labels", True), ("random directions", False)]


def test_a_direction_that_does_not_fit_is_refused(model, tmp_path):
    file = tmp_path / "found.safetensors"
    save_file({"direction": np.ones(model.d_model + 1, np.float32)}, file)
    with pytest.raises(DetectorError, match=r"shape \[33\], expected \[32\]"):
        bench(model).detector(direction("found", file, at=AT))
    save_file({"direction": np.ones(model.d_model, np.float32)}, file, {"mi_audit_card": json.dumps({"model_root": "0" * 64})})
    with pytest.raises(DetectorError, match="another model"):
        bench(model).detector(direction("found", file, at=AT))
    spec = direction("found", file, at=AT)
    save_file({"direction": np.ones(model.d_model, np.float32)}, file)
    with pytest.raises(DetectorError, match="changed after the run was planned"):
        bench(model).detector(spec)
    assert bench(model).detector(direction("found", file, at=AT)).centre.tolist() == [0.0] * model.d_model


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_score_that_is_not_finite_names_detector_and_prompt(model, tmp_path):
    file = tmp_path / "huge.safetensors"
    save_file({"direction": np.full(model.d_model, 1e200), "centre": np.full(model.d_model, -1e200)}, file)
    with pytest.raises(DetectorError, match=r"huge: its score of prompt '\w+' is not finite"):
        bench(model).read(ReadSpec(direction("huge", file, at=AT), ANSWERS["test"]))
