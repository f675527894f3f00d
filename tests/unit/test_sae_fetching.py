"""An SAE of a release is fetched by sae-lens from a hub in its own layout, kept once, and never unpickled."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mi_audit.errors import PlanError
from mi_audit.plan.saes import CONFIG, WEIGHTS
from mi_audit.sae_sources import named
from tests.unit.saes import save_sae

HOOK = {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache that holds owner/saes with an SAE in the folder `first`; nothing else can be reached."""
    repository = tmp_path / "hub" / "models--owner--saes"
    snapshot = repository / "snapshots" / ("a" * 40)
    save_sae(snapshot / "first", 8, 24, "jumprelu", metadata=HOOK)
    save_file({"sparsity": torch.zeros(24)}, snapshot / "first" / "sparsity.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    for name, value in (("HF_HUB_CACHE", str(tmp_path / "hub")), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("MI_AUDIT_CACHE", str(tmp_path / "cache"))
    return snapshot / "first"


def test_a_release_is_fetched_once(hub, tmp_path, monkeypatch):
    found = named("owner/saes/first", tmp_path)
    assert found.name == "owner/saes/first" and found.config.architecture == "jumprelu" and found.config.metadata.model_name == "tiny"
    kept, given = load_file(found.folder / WEIGHTS), load_file(hub / WEIGHTS)
    assert kept.keys() == given.keys() and all(torch.equal(kept[name], given[name]) for name in given)
    monkeypatch.setitem(sys.modules, "sae_lens", None)  # whoever asks again needs it no more
    assert named("owner/saes/first", tmp_path).digest == found.digest


def test_what_is_pickled_is_refused(hub, tmp_path, monkeypatch):
    from sae_lens import SAE

    torch.save({}, tmp_path / "weights.pt")
    monkeypatch.setattr(SAE, "from_pretrained", lambda *_, **__: torch.load(tmp_path / "weights.pt"))
    before = torch.load
    with pytest.raises(PlanError, match=r"owner/saes/first.*its files are pickled"):
        named("owner/saes/first", tmp_path)
    assert torch.load is before and not list((tmp_path / "cache" / "saes").glob("[0-9a-f]*"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "no such folder beside .*; shipped SAEs: smollm2"),
        ("./nothing/there", "no such folder"),
        ("owner/saes", "a hub repository is named owner/repository/folder"),
        ("gpt2-small-res-jb/nothing", "the release has no 'nothing'; it has blocks.0.hook_resid_pre"),
    ],
)
def test_what_is_not_there_is_named(hub, tmp_path, source, message):
    with pytest.raises(PlanError, match=message):
        named(source, tmp_path)


def test_what_can_not_be_computed_is_told(hub, tmp_path):
    config = json.loads((hub / CONFIG).read_text())
    (hub / CONFIG).write_text(json.dumps(config | {"normalize_activations": "expected_average_only_in"}))
    with pytest.raises(PlanError, match="scaled by a factor that its file does not hold"):
        named("owner/saes/first", tmp_path)
