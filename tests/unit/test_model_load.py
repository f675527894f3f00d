import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, T5Config

from mi_audit.errors import ModelError
from mi_audit.model.checkpoint import inspect
from mi_audit.model.load import load
from tests.agreement.tiny_models import LAYERS, WIDTH, save_tiny, tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", "llama")


def edit(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder, match):
    with pytest.raises(ModelError, match=match):
        load(str(folder), device="cpu", progress=False)


def test_identity_says_what_was_loaded(folder):
    model = load(str(folder), device="cpu", progress=False)
    loaded = ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    listing = subprocess.run(["sha256sum", *loaded], cwd=folder, capture_output=True, check=True).stdout
    identity = model.identity
    assert identity.root == hashlib.sha256(listing).hexdigest()
    assert [file.name for file in identity.files] == loaded
    reference, tokenizer = tiny("llama")
    assert identity.parameters == sum(parameter.numel() for parameter in reference.parameters())
    assert (identity.architecture, identity.n_layers, identity.d_model, identity.vocabulary) == ("LlamaForCausalLM", LAYERS, WIDTH, 261)
    assert (identity.source, identity.dtype, identity.device, identity.attention) == ("directory", "float32", "cpu", "sdpa")
    assert identity.chat_template_digest == hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
    assert json.loads(json.dumps(identity.to_dict()))["versions"]["torch"] == torch.__version__
    assert not model.hf.training
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
    tokens = torch.arange(5, 25)[None]
    torch.testing.assert_close(model.hf(tokens).logits, reference(tokens).logits, rtol=0, atol=0)


def test_root_follows_the_bytes_and_not_the_place(folder, tmp_path):
    before = load(str(folder), device="cpu", progress=False).identity
    moved = folder.rename(tmp_path / "elsewhere")
    (moved / "notes.txt").write_text("beside the point")
    assert load(str(moved), device="cpu", dtype="bfloat16", progress=False).identity.root == before.root
    template = moved / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    after = load(str(moved), device="cpu", progress=False).identity
    assert after.root != before.root
    assert after.chat_template_digest != before.chat_template_digest
    assert after.tokenizer_digest == before.tokenizer_digest


def test_dtype_and_device(folder):
    assert load(str(folder), device="cpu", dtype="bfloat16", progress=False).dtype == torch.bfloat16
    edit(folder / "config.json", dtype="bfloat16")
    assert load(str(folder), device="cpu", progress=False).identity.dtype == "float32"
    with pytest.raises(ModelError, match="'int8' is no dtype"):
        load(str(folder), dtype="int8")
    with pytest.raises(ModelError, match="'tpu0' is no device"):
        load(str(folder), device="tpu0")
    with pytest.raises(ModelError, match=r"'cuda:99' is not available"):
        load(str(folder), device="cuda:99")


def test_pickle_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    refused(folder, r"only pytorch_model.bin, and pickle weights are never loaded")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused_and_not_run(folder, name, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit(folder / name, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]})
    refused(folder, "remote code is never run")
    assert not (tmp_path / "ran").exists()


def test_fetched_kernels_and_adapters_are_refused(folder):
    edit(folder / "config.json", _attn_implementation="someone/kernel")
    refused(folder, "asks for the kernel 'someone/kernel'")
    edit(folder / "config.json", _attn_implementation=None)
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "merge it into its model")


def test_links_that_leave_the_folder_are_refused(folder, tmp_path):
    outside = (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (folder / "tokenizer.json").symlink_to(outside)
    refused(folder, "is a link that leaves")


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "part.bin", "a\\b.safetensors"])
def test_an_index_names_only_shards_beside_it(folder, shard):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    refused(folder, "only .safetensors files in the same folder are loaded")


def test_sharded_weights_load(folder):
    whole = load(str(folder), device="cpu", progress=False)
    sharded = folder.parent / "sharded"
    whole.hf.save_pretrained(sharded, max_shard_size="20KB")
    whole.tokenizer.save_pretrained(sharded)
    model = load(str(sharded), device="cpu", progress=False)
    assert sum(file.name.endswith(".safetensors") for file in model.identity.files) > 1
    tokens = torch.arange(5, 25)[None]
    assert torch.equal(model.hf(tokens).logits, whole.hf(tokens).logits)


def test_a_checkpoint_that_is_not_whole_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    missing = weights.pop("model.layers.2.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, r"lacks 1 of its architecture's weights.*model.layers.2.mlp.up_proj.weight")
    save_file({**weights, "model.layers.2.mlp.up_proj.weight": missing, "stray": missing.clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(str(folder), device="cpu", progress=False).identity.unused == ("stray",)


def test_configurations_that_lie_are_refused(folder):
    original = (folder / "config.json").read_text()
    for changes, match in [
        ({"num_hidden_layers": 10**9}, "from 1 to 4096"),
        ({"vocab_size": 10**9}, "they belong to another model"),
        ({"hidden_size": 64}, "can't be loaded"),
        ({"model_type": "nonesuch"}, "can't be loaded"),
    ]:
        (folder / "config.json").write_text(original)
        edit(folder / "config.json", **changes)
        refused(folder, match)
    (folder / "config.json").write_text('{"a":' * 100_000)
    refused(folder, "is not valid JSON")
    (folder / "config.json").write_text(" " * (2 << 20))
    refused(folder, "larger than 1 MiB")


def test_encoder_decoders_are_refused(folder):
    T5Config(num_layers=1).save_pretrained(folder)
    refused(folder, "is an encoder-decoder")


def test_a_folder_without_a_tokenizer_is_refused(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        inspect(folder)


@pytest.mark.parametrize("ref", ["./nowhere", "/nowhere/at/all", "a/b/c/d", "two words", "nowhere.gguf"])
def test_unknown_references_say_what_to_give(ref):
    with pytest.raises(ModelError, match=r"give a shipped name \(smollm2-135m-instruct, gemma3-270m\)|does not exist"):
        load(ref, progress=False)


HUB = """
import json, socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("asked the network")
from mi_audit.errors import ModelError
from mi_audit.model.load import load
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
for ref in sys.argv[1:]:
    try:
        identity = load(ref, device="cpu", progress=False).identity
        print(json.dumps([identity.source, identity.revision, identity.root, identity.ref]))
    except ModelError as error:
        print(json.dumps(str(error)))
"""


def test_hub_names_come_from_the_local_hub_cache_without_a_network(folder, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--org--tiny"
    snapshot = repository / "snapshots" / commit
    for part in (snapshot, repository / "blobs", repository / "refs"):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for path in folder.iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
    refs = [f"org/tiny@{commit}", "org/tiny@main", "org/tiny", "org/absent"]
    done = subprocess.run([sys.executable, "-c", HUB, *refs], env=environment, capture_output=True, text=True, check=True)
    *found, absent = [json.loads(line) for line in done.stdout.splitlines()]
    root = load(str(folder), device="cpu", progress=False).identity.root
    assert found == [["hub", commit, root, ref] for ref in refs[:3]]
    assert "org/absent could not be fetched from the hub" in absent
    assert done.stderr == ""


def test_loading_leaves_the_random_state_alone(folder):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load(str(folder), device="cpu", progress=False)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("architecture", ["gpt2", "bloom", "opt"])
def test_the_base_model_is_the_decoder_without_its_head(architecture, tmp_path):
    model = load(str(save_tiny(tmp_path / architecture, architecture)), device="cpu", progress=False)
    tokens = torch.arange(5, 25)[None]
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / architecture)
    assert torch.equal(model.hf.get_output_embeddings()(model.base(tokens)[0]), whole(tokens).logits)
    assert model.max_length in (512, None)
