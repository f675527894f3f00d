import json

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from mi_audit.detectors.files import CARD, read_vectors
from mi_audit.detectors.fitted import FittedDetector, load
from mi_audit.errors import DetectorError
from mi_audit.plan.detectors import false_positive_rate, probe
from mi_audit.plan.places import At, at
from mi_audit.suites.suite import suite

ROOT = "ab" * 32
TRUTH = suite([{"text": f"t{number}", "label": number % 2 == 0} for number in range(20)], name="truth")
CALM = suite([f"c{number}" for number in range(20)], name="calm")


def spec(**changed):
    arguments = {"method": "logistic", "at": at("resid_post", depth=0.5), "fit": TRUTH, "threshold": false_positive_rate(0.1, on=CALM)} | changed
    return probe("truth", **arguments)


def detector(**changed):
    random = np.random.default_rng(0)
    return FittedDetector(
        spec(**changed), ROOT, At("resid_post", layer=2), random.standard_normal(8), random.standard_normal(8), 0.1 + 0.2, {"n": 20, "regularisation": 0.01}
    )


def test_a_saved_detector_loads_back_equal(tmp_path):
    saved, file = detector(), tmp_path / "truth.safetensors"
    saved.save(file)
    loaded = load(file, spec(), ROOT, width=8)
    assert (loaded.spec, loaded.model_root, loaded.at, loaded.threshold, loaded.card) == (saved.spec, ROOT, saved.at, saved.threshold, saved.card)
    assert (loaded.weight == saved.weight).all() and (loaded.centre == saved.centre).all()
    acts = np.random.default_rng(1).standard_normal((5, 8))
    assert (loaded.score(acts) == saved.score(acts)).all()
    assert file.read_bytes() == detector().to_bytes() == loaded.to_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["truth.safetensors"]
    assert read_vectors(file, "truth").card is not None


def test_another_model_or_spec_is_refused_by_name(tmp_path):
    file = tmp_path / "truth.safetensors"
    detector().save(file)
    with pytest.raises(DetectorError, match=r"another model \(root abababababab, this one has cccccccccccc\)"):
        load(file, spec(), "c" * 64)
    with pytest.raises(DetectorError, match=r'another spec: method is "logistic" there and "mass_mean" here'):
        load(file, spec(method="mass_mean"), ROOT)
    with pytest.raises(DetectorError, match=r"fit is .*truth.* there and .*truth.* here; threshold is .* there and null here"):
        load(file, spec(fit=TRUTH.sample(19), threshold=None), ROOT)
    with pytest.raises(DetectorError, match=r"expected \[9\]"):
        load(file, spec(), ROOT, width=9)
    with pytest.raises(DetectorError, match="can't be written"):
        detector().save(tmp_path / "absent" / "truth.safetensors")


GOOD = {"direction": np.ones(4, np.float32), "centre": np.zeros(4, np.float32)}


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        ({"centre": GOOD["centre"]}, "no tensor 'direction'"),
        ({**GOOD, "bias": np.ones(1, np.float32)}, "holds the tensor 'bias'"),
        ({"direction": np.zeros(4, np.float32)}, "is zero"),
        ({"direction": np.array([1, np.nan, 1, 1], np.float32)}, r"direction\[1\] is not finite"),
        ({**GOOD, "centre": np.array([1, 1, 1, np.inf])}, r"centre\[3\] is not finite"),
        ({"direction": np.ones(4, np.int64)}, "of type I64"),
        ({"direction": np.ones((4, 1), np.float32)}, r"shape \[4, 1\]"),
        ({**GOOD, "centre": np.ones(3, np.float32)}, r"'centre' has shape \[3\], expected \[4\]"),
        ({"direction": np.ones(5, np.float32)}, r"shape \[5\], expected \[4\]"),
    ],
)
def test_unusable_vectors_are_refused(tmp_path, tensors, fault):
    file = tmp_path / "any.safetensors"
    save_file(tensors, file)
    with pytest.raises(DetectorError, match=fault):
        read_vectors(file, "any", width=4)


@pytest.mark.parametrize("card", ["{", "[]", "NaN", '{"a": NaN}', "[" * 100_000, '"' + "x" * 2**20 + '"'])
def test_a_damaged_card_is_refused(tmp_path, card):
    file = tmp_path / "any.safetensors"
    file.write_bytes(save(GOOD, {CARD: card}))
    with pytest.raises(DetectorError, match="card is damaged"):
        read_vectors(file, "any")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"format": 2}, "format 2"),
        ({"model_root": None}, "root unknown"),
        ({"spec_digest": "0", "spec": None}, "does not say which"),
        ({"spec_digest": "0"}, "does not fit its description"),
        ({"threshold": "0.3"}, "broken threshold"),
        ({"threshold": None}, "broken threshold"),
        ({"threshold": True}, "broken threshold"),
        ({"card": 3}, "no notes"),
        ({"at": {"point": "mlp_out", "layer": 2, "depth": None}}, "no place"),
        ({"at": {"point": "resid_post", "layer": None, "depth": None}}, "no place"),
        ({"at": 7}, "no place"),
    ],
)
def test_a_forged_card_is_refused(tmp_path, changes, fault):
    file = tmp_path / "truth.safetensors"
    detector().save(file)
    found = read_vectors(file, "truth")
    file.write_bytes(save({"direction": found.direction, "centre": found.centre}, {CARD: json.dumps({**found.card, **changes})}))
    with pytest.raises(DetectorError, match=fault):
        load(file, spec(), ROOT)


def test_a_damaged_changed_or_missing_file_is_refused(tmp_path):
    file = tmp_path / "any.safetensors"
    with pytest.raises(DetectorError, match="can't be read: No such file"):
        read_vectors(file, "any")
    file.write_bytes(save(GOOD))
    with pytest.raises(DetectorError, match="changed after the run was planned"):
        read_vectors(file, "any", digest="0" * 64)
    with pytest.raises(DetectorError, match="holds no card"):
        load(file, spec(), ROOT)
    file.write_bytes(save(GOOD)[:-1])
    with pytest.raises(DetectorError, match="no safetensors file or is damaged"):
        read_vectors(file, "any")
    file.write_bytes(b"\x80\x04pickled")
    with pytest.raises(DetectorError, match="no safetensors file or is damaged"):
        read_vectors(file, "any")
    with file.open("wb") as sparse:
        sparse.truncate(64 * 2**20 + 1)
    with pytest.raises(DetectorError, match="larger than 64 MiB"):
        read_vectors(file, "any")
