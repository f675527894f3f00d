"""A model that an earlier run loaded is known without its weights; whatever could make it another one loads it again."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from shutil import copytree

import pytest

from mi_audit.engine import encoding
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.cache_folder import activations_dir
from mi_audit.engine.capture import Site, capture
from mi_audit.engine.encoding import encode_all
from mi_audit.engine.tokens import encode
from mi_audit.errors import HookPointError, ModelError
from mi_audit.model import remembering
from mi_audit.model.cache import ENVIRONMENT
from mi_audit.model.facts import Facts
from mi_audit.model.known import KnownModel
from mi_audit.model.load import load
from mi_audit.model.opening import open_model
from mi_audit.model.remembering import facts_dir
from mi_audit.plan.places import At, Tokens
from mi_audit.suites.prompt import Message, Prompt

SITE = Site(At("resid_post", layer=1), Tokens("all"))
PROMPTS = [
    Prompt("plain", text="x is y, naïve 猫\u2028"),
    Prompt("chat", messages=(Message("user", "Why is the sky blue?"),), response="So it is."),
    Prompt("answered", text="Is it so? ", response="It is."),
]


pytestmark = pytest.mark.skipif(not remembering.CPU_INFO.exists(), reason="facts are kept where the system tells of its processor")


@pytest.fixture
def folder(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    monkeypatch.setattr(remembering, "DEVICES", tmp_path / "no-devices")
    return copytree(tiny_folder, tmp_path / "model")


def opened(folder, device="cpu", **asked):
    return open_model(str(folder), progress=False, device=device, **asked)


def known(folder, **asked):
    return not opened(folder, **asked).has_weights


def read(model, prompts=PROMPTS):
    return capture(model, prompts, [SITE], cache=ActivationCache.of(model, activations_dir())).vectors(SITE)


def test_what_is_known_is_what_loading_finds(folder):
    first, second, plain = opened(folder), opened(folder), load(str(folder), device="cpu", progress=False)
    assert first.has_weights and not second.has_weights
    assert second.identity == first.identity == plain.identity
    assert (second.self_check, second.packing, second.max_length, second.n_layers, second.processor) == (
        first.self_check,
        first.packing,
        first.max_length,
        first.n_layers,
        first.processor,
    )
    assert second.hook_points.available() == first.hook_points.available()
    assert second.hook_points.refused == first.hook_points.refused
    for wrong in (("resid_post", 99), ("embed", 0), ("nothing", None)):
        with pytest.raises(HookPointError) as of_known:
            second.hook_points.resolve(*wrong)
        with pytest.raises(HookPointError) as of_loaded:
            first.hook_points.resolve(*wrong)
        assert str(of_known.value) == str(of_loaded.value)


def test_what_was_read_before_is_read_again_without_torch(folder):
    vectors = read(opened(folder))
    script = folder.parent / "again.py"
    script.write_text(
        f"""
import sys
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.cache_folder import activations_dir
from mi_audit.engine.capture import Site, capture
from mi_audit.model.opening import open_model
from mi_audit.plan.places import At, Tokens
from mi_audit.suites.prompt import Message, Prompt
model = open_model({str(folder)!r}, device="cpu", progress=False)
vectors = capture(model, {PROMPTS!r}, [{SITE!r}], cache=ActivationCache.of(model, activations_dir())).vectors({SITE!r})
assert not {{"torch", "transformers"}} & sys.modules.keys(), "torch was imported"
print(vectors.tobytes().hex())
"""
    )
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == vectors.tobytes().hex()


def test_what_is_new_passes_through_the_weights(folder):
    read(opened(folder))
    model, more = opened(folder), [*PROMPTS, Prompt("new", text="something else")]
    assert not model.has_weights
    vectors = read(model, more)
    assert model.has_weights
    assert (vectors == capture(load(str(folder), device="cpu", progress=False), more, [SITE]).vectors(SITE)).all()


@pytest.mark.parametrize("asked", [{"dtype": "bfloat16"}, {"dtype": "float16"}])
def test_low_precision_is_always_loaded(folder, asked):
    opened(folder, **asked)
    assert not known(folder, **asked)
    assert not known(folder)  # nor was it kept for float32
    assert known(folder)


def test_facts_of_what_is_not_in_float32_on_a_cpu_are_not_kept(folder):
    facts = Facts.of(load(str(folder), device="cpu", progress=False))
    for name, value in (("device", "cuda:0"), ("dtype", "bfloat16")):
        remembering.remember("0", replace(facts, identity=replace(facts.identity, **{name: value})))
        assert not facts_dir().exists()


def test_an_accelerator_is_always_asked(folder):
    assert remembering.kept_for("auto", "auto")
    remembering.DEVICES.mkdir()
    (remembering.DEVICES / "nvidiactl").touch()
    assert not remembering.kept_for("auto", "auto")
    assert not remembering.kept_for("cuda", "auto") and not remembering.kept_for("balanced", "float32")
    assert remembering.kept_for("cpu", "auto")


def test_other_circumstances_load_it_again(folder, monkeypatch):
    opened(folder)
    another = folder.parent / "cpuinfo"
    another.write_text("processor : 0\nflags : fpu sse2\n\nprocessor : 1\n")
    for change in (
        lambda patch: patch.setattr(remembering, "library_versions", lambda: (("torch", "0"),)),
        lambda patch: patch.setenv("ATEN_CPU_CAPABILITY", "default"),
        lambda patch: patch.setattr(remembering, "CPU_INFO", another),
        lambda patch: patch.setattr(remembering, "CPU_INFO", folder / "config.json"),
        lambda patch: patch.setattr(remembering, "digest_of_code", lambda *packages: "changed"),
    ):
        with monkeypatch.context() as patch:
            change(patch)
            assert not known(folder)
        assert known(folder)


def test_another_file_is_another_model(folder):
    opened(folder)
    config = folder / "generation_config.json"
    config.write_text(config.read_text().replace("{", '{"max_length": 11,', 1) if config.exists() else '{"max_length": 11}')
    assert not known(folder)


def test_facts_that_were_changed_are_not_believed(folder):
    opened(folder)
    [file] = facts_dir().iterdir()
    file.write_bytes(file.read_bytes().replace(b'"passed":true', b'"passed":false', 1))
    assert not known(folder)
    assert known(folder)


def forge(folder, change):
    """Write other facts under the same key, with a digest that fits."""
    facts = change(Facts.of(load(str(folder), device="cpu", progress=False)))
    [file] = facts_dir().iterdir()
    content = remembering._FACTS.dump_json(facts)
    file.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def test_facts_of_another_model_fail_where_its_weights_are_read(folder):
    opened(folder)
    forge(folder, lambda facts: replace(facts, points=facts.points[1:]))
    model = opened(folder)
    for _ in range(2):
        with pytest.raises(ModelError, match="is not what an earlier run found"):
            model.loaded()
    assert str(model.failure).startswith(str(folder))
    assert not known(folder)
    forge(folder, lambda facts: replace(facts, identity=replace(facts.identity, root="0" * 64)))
    assert not known(folder)


def test_what_fails_to_load_in_any_way_is_a_model_error_and_not_tried_again(folder):
    tried = []

    def fails():
        tried.append(1)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model = KnownModel(Facts.of(load(str(folder), device="cpu", progress=False)), fails, lambda: None)
    for _ in range(2):
        with pytest.raises(ModelError, match="RuntimeError: DefaultCPUAllocator"):
            model.loaded()
    assert len(tried) == 1


def test_files_that_change_after_they_were_digested_are_not_loaded(folder):
    opened(folder)
    model = opened(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelError, match="have changed since they were digested"):
        read(model)


def test_a_disk_that_refuses_loads_it_again(folder, monkeypatch):
    (folder.parent / "file").touch()
    monkeypatch.setenv(ENVIRONMENT, str(folder.parent / "file" / "cache"))
    assert not known(folder)
    assert not known(folder)


def test_every_selection_and_its_texts_come_back_from_the_cache(folder):
    """Each field of `Encoded` survives, whatever the tokenizer can tell."""
    model = opened(folder)
    tokenizer = model.loaded().tokenizer
    first = list(encode_all(model, PROMPTS, ActivationCache.of(model, activations_dir())))
    again = opened(folder)
    assert list(encode_all(again, PROMPTS, ActivationCache.of(again, activations_dir()))) == first == [encode(tokenizer, prompt) for prompt in PROMPTS]
    assert not again.has_weights


def test_tokens_of_unknown_place_come_back_by_name(folder):
    """A tokenizer that can't tell which characters a token covers."""
    model = opened(folder)
    encoded = replace(next(iter(encode_all(model, PROMPTS, None))), offsets=None, names=("a", "b"))
    assert encoding._read(encoding._line(encoded)) == encoded


def test_a_template_that_tells_the_date_is_rendered_each_time(folder):
    file = folder / "chat_template.jinja"
    template = opened(folder).loaded().tokenizer.chat_template
    for text, kept in (("{{ strftime_now('%Y') }}" + template, False), (template, True)):
        file.write_text(text)
        read(opened(folder))
        model = opened(folder)
        list(encode_all(model, PROMPTS, ActivationCache.of(model, activations_dir())))
        assert model.has_weights is not kept
