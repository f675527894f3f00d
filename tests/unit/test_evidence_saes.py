"""What a sparse autoencoder is worth stands with every reading of its latents, and a verdict on one that is worth too little is never believed."""

import pytest

from mi_audit.errors import EvidenceError
from mi_audit.evidence.saes import SaeRecord
from mi_audit.reporting import html
from tests.unit import bundles, bundles_dose

SAE = SaeRecord(
    name="resid_15",
    digest=bundles.sha("sae"),
    architecture="topk",
    width=4608,
    latents=(17, 4000),
    combine="sum",
    pooling="mean",
    trained_on="smollm2-135m-instruct",
    reconstructs=None,
    published={"explained_variance": 0.78},
    prompts=128,
    tokens=5_000,
    explained_variance=0.745,
    explained_variance_low=0.731,
    explained_variance_floor=0.5,
    latents_explain=None,
    latents_explain_low=None,
    l0=32.0,
    norm_ratio=0.91,
    neutral_explained_variance=0.8,
    neutral_tokens=16_000,
    dead=700,
    dense=3,
    loss_recovered=0.959,
    loss_recovered_low=0.951,
    loss_recovered_floor=0.8,
    better_at=None,
    loss_recovered_zero=0.979,
    kl=0.12,
    below=(),
)
POOR = {"explained_variance": 0.41, "explained_variance_low": 0.39, "below": ("the SAE resid_15 explains 41 % of the variance, the floor is 0.5",)}


def with_latents(sae=SAE, kind="latent"):
    """A bundle all of whose detectors are latents of one SAE."""
    content = bundles.passing()
    detectors = [each.model_copy(update={"kind": kind}) for each in content.run.detectors]
    readings = [each.model_copy(update={"sae": sae}) for each in content.run.readings]
    content.run = content.run.model_copy(update={"detectors": tuple(detectors), "readings": tuple(readings)})
    return content


def test_the_report_says_what_the_sae_is_worth(tmp_path):
    text = " ".join(html.render(with_latents().write(tmp_path / "out")).replace("&nbsp;", " ").replace("\u00a0", " ").split())
    assert "It rebuilds 74.5 % of the variance of the model's activations on 128 prompts of this suite" in text.replace("&#39;", "'")
    assert "at least 73.1 % is shown, 50 % is asked for" in text
    assert "recovers 95.9 % of the predictive loss" in text and "700 latents never fired" in text
    assert "Latents of a sparse autoencoder" in text
    steered = bundles_dose.experiments()[2]
    of_latents = {"detectors": "kind", "readings": "sae", "experiments": "sae"}
    parts = {
        part: tuple(each.model_copy(update={name: "latent" if name == "kind" else SAE}) for each in getattr(steered.run, part))
        for part, name in of_latents.items()
    }
    steered.run = steered.run.model_copy(update=parts)
    shown = html.render(steered.write(tmp_path / "steered"))
    assert shown.count("Sparse autoencoder <bdi>resid_15</bdi>") == len(steered.run.readings) + len(steered.run.experiments)
    transcoder = html.render(with_latents(SAE.model_copy(update={"reconstructs": "mlp_out at layer 15"})).write(tmp_path / "transcoder"))
    assert "at <bdi>mlp_out at layer 15</bdi>, which it makes from what is read, on 128" in transcoder.replace("&nbsp;", " ").replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: with_latents(None), "has no record of a sparse autoencoder"),
        (lambda: with_latents(kind="direction"), "has a record of a sparse autoencoder"),
        (lambda: with_latents(SAE.model_copy(update=POOR)), "on latents of a sparse autoencoder that does not reach its floors"),
        (lambda: with_latents(SAE.model_copy(update={**POOR, "below": ()})), "misses its floors, but is said to do otherwise"),
        (lambda: with_latents(SAE.model_copy(update={"latents_explain": 0.2, "latents_explain_low": 0.1})), "misses its floors, but is said to do otherwise"),
        (lambda: with_latents(SAE.model_copy(update={"better_at": "resid_post at layer 14"})), "misses its floors, but is said to do otherwise"),
        (lambda: with_latents(SAE.model_copy(update={"loss_recovered_low": None})), "misses its floors, but is said to do otherwise"),
        (lambda: with_latents(SAE.model_copy(update={"below": ("x",)})), "reaches its floors, but is said to do otherwise"),
    ],
)
def test_evidence_on_an_sae_that_is_worth_too_little_is_refused(tmp_path, content, message):
    with pytest.raises(EvidenceError, match=message):
        content().write(tmp_path / "out")
