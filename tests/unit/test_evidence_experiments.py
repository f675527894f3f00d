"""A claim may rest on an experiment that is recorded, of the detector and the suite that it names."""

import pytest

from mi_audit.errors import EvidenceError
from mi_audit.evidence import consistency
from tests.unit import bundles, bundles_dose

SLOPE, KL = 1, 7
"""Places among the claims."""


@pytest.fixture(scope="module")
def run():
    return bundles_dose.experiments()[2].run


def test_claims_on_experiments_stand(run):
    assert (run.claims[SLOPE].quantity, run.claims[KL].quantity) == ("slope", "kl")
    consistency.check(run)
    many = run.claims[KL].model_copy(update={"n": 61})
    consistency.check(run.model_copy(update={"claims": (*run.claims[:KL], many, *run.claims[KL + 1 :])}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reading": bundles.sha("none")}, "not recorded"),
        ({"suite": "another"}, "names another detector or suite than its experiment"),
        ({"n": 61}, "counts 61 prompts, its experiment 60"),
    ],
)
def test_a_claim_that_does_not_fit_its_experiment_is_refused(run, change, message):
    claim = run.claims[SLOPE].model_copy(update=change)
    with pytest.raises(EvidenceError, match=message):
        consistency.check(run.model_copy(update={"claims": (*run.claims[:SLOPE], claim, *run.claims[SLOPE + 1 :])}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector_digest": bundles.sha("none")}, "experiment .* uses the detector 'dishonesty', which is not recorded"),
        ({"suite_digest": bundles.sha("none")}, "experiment .* uses the suite 'questions', which is not recorded"),
        ({"id": None}, "is recorded 2 times"),
    ],
)
def test_an_experiment_that_does_not_fit_the_run_is_refused(run, change, message):
    change = {"id": run.readings[0].id} if "id" in change else change
    changed = run.experiments[0].model_copy(update=change)
    with pytest.raises(EvidenceError, match=message):
        consistency.check(run.model_copy(update={"experiments": (changed, run.experiments[1])}))
