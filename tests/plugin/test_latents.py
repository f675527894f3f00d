"""Latents in an audit, end to end: a bad SAE decides nothing, whatever its latents read; what drives a latent is in the evidence."""

import json

import pyarrow.compute as pc
import pytest

from mi_audit.plan.saes import CONFIG
from tests.plugin.runs import run
from tests.plugin.toy import TOY
from tests.unit.saes import save_sae

AUDIT = (
    TOY
    + """
sae = mi.sae("sae")
latents = mi.latent_group(sae, range(0, 60, 2), name="latents", tokens="all", found_on=toy["train"])

@mi.audit(about="instrument")
def audit_reads(model):
    \"\"\"They read something.\"\"\"
    reading = model.read(latents, toy["test"])
    assert reading.auroc() >= 0.01
    reading.attribute()
"""
)


@pytest.fixture
def sae(pytester, tiny_llama):
    """An SAE of random weights that says that it was trained on the model under audit."""
    pytester.makepyfile(audit_latents=AUDIT)
    folder = pytester.path / "sae"
    return save_sae(folder, tiny_llama.d_model, 64, metadata={"hook_name": "blocks.1.hook_resid_post"})


def test_an_sae_that_explains_nothing_decides_nothing(pytester, tiny_folder, sae):
    done = run(pytester, tiny_folder)
    assert done.result.ret == 10 and done.verdicts == {"audit_reads": "INCONCLUSIVE"}
    (claim,) = done.bundle.run.claims
    assert any("the floor is 0.5 (explained_variance)" in reason for reason in claim.reasons)
    tokens = done.bundle.tokens()
    driven = tokens.filter(pc.is_valid(tokens["attribution"]))
    assert len(set(driven["prompt"].to_pylist())) == 3, "three prompts are attributed"


def test_an_sae_of_another_model_is_refused(pytester, tiny_folder, sae):
    config = json.loads((sae / CONFIG).read_text())
    (sae / CONFIG).write_text(json.dumps({**config, "metadata": {**config["metadata"], "model_name": "gpt2"}}))
    done = run(pytester, tiny_folder)
    assert done.result.ret == 12 and "model_name: it was trained on 'gpt2'" in done.error("audit_reads")


def test_a_reading_is_attributed_in_one_way(pytester, tiny_folder, sae):
    other = AUDIT.partition("@mi.audit")[2].replace("audit_reads", "audit_reads_too").replace("attribute()", 'attribute(baseline="mean")')
    pytester.makepyfile(audit_latents=AUDIT + "\n@mi.audit" + other)
    done = run(pytester, tiny_folder)
    assert done.result.ret == 12 and done.verdicts["audit_reads"] == "INCONCLUSIVE"
    assert "the same reading is attributed from the baseline 'space' too, here from 'mean'; use one of them" in done.error("audit_reads_too")
