"""The layer sweep: its curve is what numpy and sklearn make of it, it finds what was planted, and its choice leaves readings honest."""

import random
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from mi_audit.auditor import Auditor
from mi_audit.detectors.activations import Activations
from mi_audit.detectors.bench import Bench
from mi_audit.detectors.fitted import load as load_detector
from mi_audit.detectors.learned import LearnedProbe
from mi_audit.detectors.methods import mi_audit_probe_methods
from mi_audit.detectors.nulls import Draw
from mi_audit.detectors.quantities import controls_of, measure
from mi_audit.detectors.readings import DETECTOR, Arm, ReadingData
from mi_audit.detectors.sweeping import choose
from mi_audit.engine.capture import Site, capture
from mi_audit.errors import DetectorError, PlanError
from mi_audit.model.load import load
from mi_audit.plan.detectors import false_positive_rate, probe
from mi_audit.plan.measurements import EstimateSpec, ReadSpec
from mi_audit.plan.places import At, Tokens, at
from mi_audit.plan.sweep import sweep
from mi_audit.suites.suite import suite
from tests.agreement.tiny_models import LAYERS, save_tiny

ALPHA = 0.025


def labelled(name, groups=36, noise=0.25):
    """Groups of four that hold both classes; the word that shows the class is wrong at times, so that no layer separates them."""
    draw = random.Random(name)
    rows = []
    for row in range(4 * groups):
        shown = bool(row % 2) != (draw.random() < noise)
        rows.append({"text": f"{draw.random():.6f} {'yes' if shown else 'no'} {draw.choice('abcdefgh')}", "label": bool(row % 2), "group": f"{name}{row // 4}"})
    return suite(rows, name=name)


ANSWERS, OTHERS = labelled("answers", 60), labelled("others", 12)
CALM = suite([{"text": f"calm {row}", "label": False} for row in range(60)], name="calm")
AT = at("resid_post", depth=0.5)


def answers(method="difference_of_means", **changed):
    return probe("answers", **{"method": method, "at": AT, "fit": ANSWERS["train"], "threshold": false_positive_rate(0.1, on=CALM["train"]), **changed})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(str(save_tiny(tmp_path_factory.mktemp("tiny") / "llama")), progress=False)


def bench(model, seed=3):
    return Bench(model, alpha=ALPHA, seed=seed)


def theta(method, acts, labels):
    """The direction of a probe, by the definition in Marks & Tegmark."""
    difference = acts[labels].mean(axis=0) - acts[~labels].mean(axis=0)
    if method == "difference_of_means":
        return difference
    within = acts - np.where(labels[:, None], acts[labels].mean(axis=0), acts[~labels].mean(axis=0))
    return np.linalg.solve(ledoit_wolf(within, assume_centered=True)[0], difference)


@pytest.mark.parametrize("validation", [None, OTHERS])
@pytest.mark.parametrize("method", ["difference_of_means", "mass_mean"])
def test_the_curve_is_what_sklearn_makes_of_the_captures(model, method, validation):
    spec, one = sweep(answers(method), validation=validation), bench(model)
    curve = one.curve(spec)
    validated = {prompt.id for prompt in curve.validation}
    fitted = [prompt for prompt in spec.fit if validation is not None or prompt.id not in validated]
    assert [point.at for point in curve.points] == [At("resid_post", layer=layer) for layer in range(LAYERS)]
    expected = []
    for point in curve.points:
        site = Site(point.at, Tokens("last"))
        fit, test = (capture(model, prompts, [site]).vectors(site).astype(np.float64) for prompts in (fitted, curve.validation.prompts))
        weight = theta(method, fit, np.array([prompt.label for prompt in fitted]))
        expected.append(roc_auc_score([prompt.label for prompt in curve.validation], test @ weight))
    found = [point.auroc.value for point in curve.points]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert len(set(found)) > 1
    assert all(point.auroc.low < point.auroc.value < point.auroc.high for point in curve.points)
    assert curve.picked.layer == int(np.argmax(found))
    site = Site(curve.picked, Tokens("last"))
    whole = capture(model, spec.fit.prompts, [site]).vectors(site).astype(np.float64)
    refitted, detector = theta(method, whole, np.array(spec.fit.labels())), one.detector(spec)
    assert detector.at == curve.picked
    assert refitted @ detector.weight / np.linalg.norm(refitted) / np.linalg.norm(detector.weight) == pytest.approx(1, abs=1e-4)
    calm = np.sort(detector.score(capture(model, CALM["train"].prompts, [site]).vectors(site).astype(np.float64)))
    assert detector.threshold == pytest.approx(calm[int(np.ceil(0.9 * (len(calm) + 1))) - 1], rel=1e-4)


def test_a_third_of_the_groups_validates_by_seed_and_spec_without_a_group_or_a_content_in_common():
    twins = [{"id": f"{prompt.id}-again", "text": prompt.text, "label": prompt.label, "group": f"twin of {prompt.group}"} for prompt in ANSWERS]
    doubled = suite([{"id": prompt.id, "text": prompt.text, "label": prompt.label, "group": prompt.group} for prompt in ANSWERS] + twins, name="doubled")
    spec = sweep(answers(fit=doubled))
    fitted, validation = spec.parts(3)
    assert set(fitted.groups()).isdisjoint(validation.groups())
    assert {prompt.digest for prompt in fitted}.isdisjoint(prompt.digest for prompt in validation)
    assert len(set(validation.groups())) == 40
    assert sorted((*fitted.ids(), *validation.ids())) == sorted(doubled.ids())
    assert spec.parts(3) == (fitted, validation) != spec.parts(4)
    assert spec.parts(3)[1] != sweep(answers("mass_mean", fit=doubled)).parts(3)[1]


def test_every_prompt_passes_once_whatever_is_swept_beside_it(model):
    one = bench(model)
    swept, plain = sweep(answers()), probe("plain", method="mass_mean", at=at("mlp_out", depth=1.0), tokens="all", fit=ANSWERS["test"])
    readings = [ReadSpec(swept, ANSWERS["test"]), ReadSpec(plain, ANSWERS["calibration"]), ReadSpec(swept, CALM["test"]), ReadSpec(plain, CALM["train"])]
    one.prepare(readings)
    distinct = {prompt.digest for reading in readings for prompts in (*reading.detector.learning, reading.suite.prompts) for prompt in prompts}
    assert one.captured.prompts == len(distinct)
    for reading in readings:
        one.estimate(EstimateSpec(reading, "mean"))
    assert one.captured.prompts == len(distinct)
    site = Site(one.curve(swept).picked, Tokens("last"))
    expected = one.detector(swept).score(capture(model, ANSWERS["test"].prompts, [site]).vectors(site).astype(np.float64))
    np.testing.assert_allclose(one.read(readings[0]).values, expected, rtol=1e-4, atol=1e-5)


def test_only_places_that_can_be_read_are_swept_and_what_was_asked_for_is_never_left_out(model):
    lame = replace(model, hook_points=model.hook_points.without({("resid_post", 1): "failed its self-check"}))
    assert [point.at.layer for point in bench(lame).curve(sweep(answers())).points] == [0, 2, 3]
    assert [point.at.layer for point in bench(model).curve(sweep(answers(), over=(0.9, 0.0))).points] == [0, 3]
    assert [point.at.layer for point in bench(model).curve(sweep(answers(), over=range(1, 4))).points] == [1, 2, 3]
    with pytest.raises(PlanError, match=r"depth 0.5 and resid_post at depth 0.6.*4 layers are one"):
        bench(model).curve(sweep(answers(), over=(0.5, 0.6, 1.0)))
    with pytest.raises(PlanError, match="layers 0 to 3"):
        bench(model).curve(sweep(answers(), over=(2, 4)))
    only = replace(model, hook_points=model.hook_points.without({("resid_post", layer): "failed" for layer in (0, 1, 2)}))
    with pytest.raises(PlanError, match="1 layers of this model, too few"):
        bench(only).curve(sweep(answers()))


def test_a_saved_sweep_is_the_same_again(model, tmp_path):
    spec, file = sweep(answers(), over=(1, 2)), tmp_path / "answers.safetensors"
    detector = bench(model).detector(spec)
    detector.save(file)
    again = load_detector(file, spec, model.identity.root, width=model.d_model)
    assert again.to_bytes() == detector.to_bytes() == bench(model).detector(spec).to_bytes()
    assert again.at == detector.at
    assert [point["layer"] for point in again.card["curve"]["points"]] == [1, 2]
    with pytest.raises(DetectorError, match="another spec"):
        load_detector(file, sweep(answers(), over=(1, 3)), model.identity.root)


FIVE = [At("resid_post", layer=layer) for layer in range(5)]


def layered(prompts, informative, width=16, layers=5, seed=0):
    """Activations [n, width] of every layer, drawn for each prompt by itself; at the layers in `informative` the class is a step along the first axis."""
    draw = np.random.default_rng(seed)
    acts = {prompt.id: draw.standard_normal((layers, width)) for prompt in prompts}
    for prompt in prompts:
        for layer, step in informative.items():
            acts[prompt.id][layer, 0] += step * prompt.label
    return lambda wanted, at: np.array([acts[prompt.id][at.layer] for prompt in wanted])


@pytest.mark.parametrize("method", mi_audit_probe_methods())
def test_the_planted_layer_is_found(method):
    spec = sweep(answers(method))
    assert choose(spec, FIVE, layered(ANSWERS, {3: 4.0, 4: 1.0}), ALPHA, 0).picked.layer == 3
    assert choose(spec, FIVE, layered(ANSWERS, {2: 50.0, 4: 50.0}), ALPHA, 0).picked.layer == 2, "of equals the earliest"


def test_a_place_where_nothing_can_be_fitted_stays_in_the_curve_and_is_never_picked():
    read = layered(ANSWERS, {})
    curve = choose(sweep(answers()), FIVE[:3], lambda prompts, at: read(prompts, at) * (at.layer > 0), ALPHA, 0)
    assert curve.points[0].auroc is None
    assert "same mean activation" in curve.points[0].unfit
    assert curve.picked.layer > 0
    with pytest.raises(DetectorError, match="at any of 3 places"):
        choose(sweep(answers()), FIVE[:3], lambda prompts, at: 0 * read(prompts, at), ALPHA, 0)


def grouped(name, groups):
    """Groups of three that hold one class."""
    rows = [{"text": f"{name} {group} {row}", "label": bool(group % 2), "group": f"{name}{group}"} for group in range(groups) for row in range(3)]
    return suite(rows, name=name)


MIXED, PURE = (labelled("fit", 30), labelled("tested", 20)), (grouped("fit", 60), grouped("tested", 60))


def noise_readings(fit, tested, validation=None, runs=200, layers=12):
    """AUROC, whether its bound is above chance, whether its null is beaten at 0.05, and the best AUROC of the curve, run after run, where labels are noise.

    Prompts of a group share half of the variance of their activations, so that a group counts for less than its prompts.
    """
    spec = sweep(answers(fit=fit, threshold=None), validation=validation)
    reading, places = ReadSpec(spec, tested), [At("resid_post", layer=layer) for layer in range(layers)]
    labels, groups = np.array(tested.labels()), np.array(tested.groups())
    for seed in range(runs):
        draw = np.random.default_rng(seed)
        shared = {group: draw.standard_normal((layers, 8)) for group in dict.fromkeys((*fit.groups(), *tested.groups()))}
        acts = {prompt.id: shared[prompt.group] + draw.standard_normal((layers, 8)) for prompt in (*fit, *tested)}

        def read(prompts, at, acts=acts):
            return np.array([acts[prompt.id][at.layer] for prompt in prompts])

        def activations(part, at, read=read):
            return Activations(read(part.prompts, at), *np.zeros((3, len(part)), np.int64))

        curve = choose(spec, places, read, ALPHA, seed)
        read_there = activations(tested, curve.picked)
        learned = LearnedProbe.learn(spec, "0" * 64, curve.picked, activations(fit, curve.picked), None, np.empty((0, 8)), Draw(39, seed), curve)
        arms = (Arm(DETECTOR, learned.detector.score(read_there.vectors)[None]), *learned.null_arms(read_there, tested, reading.digest))
        data = ReadingData(reading, tested, arms, read_there.token_index, 0)
        estimate = measure("auroc", data.values, None, labels, groups, None, ALPHA)
        shuffled = next(null for null in controls_of(EstimateSpec(reading, "auroc"), estimate, data, ALPHA).nulls if null.decides)
        best = next(point.auroc.value for point in curve.points if point.at == curve.picked)
        yield estimate.value, estimate.low > 0.5, shuffled.p <= 2 / 40, best


@pytest.mark.parametrize("suites", [MIXED, PURE])
def test_a_layer_chosen_among_noise_leaves_auroc_bounds_and_p_values_honest(suites):
    values, above, beaten, best = np.array(list(noise_readings(*suites))).T
    assert np.mean(best) > 0.58, "on its own validation groups the best of many looks good"
    assert abs(np.mean(values) - 0.5) < 3.5 * np.std(values) / np.sqrt(len(values))
    assert above.sum() <= binom.ppf(0.999, len(above), ALPHA)
    assert 0 < beaten.sum() <= binom.ppf(0.999, len(beaten), 2 / 40)


def test_the_same_check_notices_a_layer_chosen_on_the_tested_groups():
    values, above, beaten, _ = np.array(list(noise_readings(*PURE, validation=PURE[1], runs=60))).T
    assert np.mean(values) > 0.55
    assert above.sum() > binom.ppf(0.999, len(above), ALPHA)
    assert beaten.sum() > binom.ppf(0.999, len(beaten), 2 / 40)


def test_what_chose_the_layer_is_seen():
    planning = Auditor(lambda spec: None, lambda spec: ())
    spec = sweep(answers(), validation=ANSWERS["calibration"])
    planning.read(spec, ANSWERS["test"])
    with pytest.raises(PlanError, match=r"tested on answers\[calibration\].* which its layer is chosen on"):
        planning.read(spec, ANSWERS["calibration"])
    with pytest.raises(PlanError, match=r"its layer is chosen on answers, but its prompt .* in answers\[train\], which it is fitted on"):
        planning.read(sweep(answers(), validation=ANSWERS), OTHERS)
    calibrated = answers(threshold=false_positive_rate(0.1, on=OTHERS))
    with pytest.raises(PlanError, match=r"its layer is chosen on others, but .* in others, which its threshold is calibrated on"):
        planning.read(sweep(calibrated, validation=OTHERS), ANSWERS["test"])
    rows = [{"text": prompt.text, "label": "yes" if prompt.label else "no", "group": prompt.group} for prompt in OTHERS]
    worded = [{"text": prompt.text, "label": "yes" if prompt.label else "no", "group": prompt.group} for prompt in ANSWERS]
    fit, turned = suite(worded, positive="yes", name="worded"), suite(rows, positive="no", name="turned")
    with pytest.raises(PlanError, match="fitted with 'yes' as positive, but turned calls 'no' so"):
        planning.read(sweep(answers(fit=fit["train"]), validation=turned), fit["test"])


def test_the_digest_covers_what_is_swept_and_validated_and_not_the_place_that_is_replaced():
    base = sweep(answers())
    same = (sweep(answers(at=at("resid_post", layer=1))), sweep(answers(), over="all"))
    other = (
        sweep(answers(), over=(1, 2)),
        sweep(answers(), over=(0.1, 0.2)),
        sweep(answers(), validation=OTHERS),
        sweep(answers("mass_mean")),
        sweep(answers(tokens="all")),
        sweep(answers(at=at("mlp_out", layer=1))),
        answers(),
    )
    assert {spec.digest for spec in same} == {base.digest}
    assert len({spec.digest for spec in (base, *other)}) == 1 + len(other)
    assert sweep(answers(), over=(2, 1)) == sweep(answers(), over=range(1, 3))


def test_what_can_not_be_swept_is_refused_with_its_fix():
    few = labelled("few", 5)
    one_class = suite([{"text": f"{row}", "label": True} for row in range(9)], name="one")
    cases = [
        (lambda: sweep("answers"), r"made with mi\.probe"),
        (lambda: sweep(answers(at=at("embed"))), "'embed' has no layers"),
        (lambda: sweep(answers(), over="some"), r"give 'all', depths such as"),
        (lambda: sweep(answers(), over=3), r"give 'all', depths such as"),
        (lambda: sweep(answers(), over=(1,)), "two different places"),
        (lambda: sweep(answers(), over=(1, 1, 2)), "none twice"),
        (lambda: sweep(answers(), over=(0.5, 3)), "are mixed"),
        (lambda: sweep(answers(), over=(0.5, 1.5)), "a depth is a number from 0 to 1"),
        (lambda: sweep(answers(), over=(True, 2)), "a layer is a whole number"),
        (lambda: sweep(answers(), over=("a", 2)), "a layer is a whole number"),
        (lambda: sweep(answers(), validation=[]), r"give a suite made with mi\.suite"),
        (lambda: sweep(answers(), validation=one_class), "have one label"),
        (lambda: sweep(answers(fit=few)), r"on a third of few's groups, which .*2 groups.*add groups to few, or give a suite of its own"),
        (lambda: sweep(answers(), validation=labelled("short", 2)), "chosen on short, which .*2 groups.*add groups to it"),
    ]
    for build, message in cases:
        with pytest.raises(PlanError, match=message):
            build()
