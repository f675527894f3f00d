import errno
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from typer.testing import CliRunner

from mi_audit.cli.cache import app
from mi_audit.engine import cache as cache_module
from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.cache_folder import FACTS, activations_dir, clear, entries, shrink
from mi_audit.engine.capture import Site, capture
from mi_audit.errors import PromptError
from mi_audit.model.cache import ENVIRONMENT
from mi_audit.model.devices import Placement
from mi_audit.model.load import load
from mi_audit.plan.places import At, Tokens
from mi_audit.suites.prompt import Prompt
from tests.unit.texts import texts

pytestmark = pytest.mark.usefixtures("one_batch")
TOP, MEAN = Site(At("resid_post", layer=2), Tokens("last")), Site(At("resid_post", layer=1), Tokens("all"))


def batches(root):
    """The files of batches; encoded prompts lie beside them."""
    return [path for path in root.rglob("*.safetensors") if not path.parent.name.startswith("prompts-")]


def same(one, other, sites):
    for site in sites:
        np.testing.assert_array_equal(one.vectors(site), other.vectors(site))
        np.testing.assert_array_equal(one.token_index(site), other.token_index(site))
        np.testing.assert_array_equal(one.excluded(site), other.excluded(site))


def test_what_is_found_is_what_would_pass_bit_for_bit(tiny_llama, tmp_path):
    plain = capture(tiny_llama, texts(60), [TOP, MEAN], budget=128)
    first = capture(tiny_llama, texts(60), [TOP], budget=128, cache=ActivationCache.of(tiny_llama, tmp_path))
    assert (first.prompts_forwarded, first.prompts_cached) == (60, 0)
    second = capture(tiny_llama, texts(60), [TOP, MEAN], budget=128, cache=ActivationCache.of(tiny_llama, tmp_path))
    third = capture(tiny_llama, texts(60), [TOP, MEAN], budget=128, cache=ActivationCache.of(tiny_llama, tmp_path))
    assert (second.prompts_forwarded, third.prompts_forwarded, third.prompts_cached) == (60, 0, 60)
    same(second, plain, [TOP, MEAN])
    same(third, plain, [TOP, MEAN])


def test_a_view_is_kept_as_what_it_shows(tiny_llama, tmp_path):
    whole, cache = np.arange(24.0).reshape(3, 2, 4), ActivationCache.of(tiny_llama, tmp_path)
    cache.put("entry", {"columns": whole[:, 1], "turned": whole[0].T})
    found = cache.tensors("entry")
    assert (found["columns"] == whole[:, 1]).all() and (found["turned"] == whole[0].T).all()


def test_a_capture_that_breaks_off_goes_on_where_it_was(tiny_llama, tmp_path):
    class Stop:
        left = 3

        def start(self, prompts, tokens): ...

        def advance(self, prompts, tokens):
            self.left -= 1
            if not self.left:
                raise RuntimeError("killed")

        def close(self): ...

    with pytest.raises(RuntimeError, match="killed"):
        capture(tiny_llama, texts(60), [TOP], budget=128, cache=ActivationCache.of(tiny_llama, tmp_path), progress=Stop())
    kept = len(batches(tmp_path))
    rest = capture(tiny_llama, texts(60), [TOP], budget=128, cache=ActivationCache.of(tiny_llama, tmp_path))
    assert kept >= 3 and rest.prompts_cached > 0 and rest.prompts_forwarded > 0
    assert rest.prompts_cached + rest.prompts_forwarded == 60
    same(rest, capture(tiny_llama, texts(60), [TOP], budget=128), [TOP])


def test_a_file_that_was_changed_is_not_believed(tiny_llama, tmp_path):
    cache = ActivationCache.of(tiny_llama, tmp_path)
    plain = capture(tiny_llama, texts(5), [TOP], cache=cache)
    (file,) = batches(tmp_path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    again = capture(tiny_llama, texts(5), [TOP], cache=cache)
    assert (len(cache.damaged), again.prompts_forwarded) == (1, 5)
    same(again, plain, [TOP])


def test_another_model_token_or_place_is_another_entry(tiny_llama, tmp_path):
    cache = ActivationCache.of(tiny_llama, tmp_path)
    capture(tiny_llama, texts(5), [TOP], cache=cache)
    assert capture(tiny_llama, texts(5), [Site(At("resid_post", layer=1), Tokens("last"))], cache=cache).prompts_forwarded == 5
    assert capture(tiny_llama, texts(5), [Site(TOP.at, Tokens("span", start=0, end=1))], cache=cache).prompts_forwarded == 5
    assert capture(tiny_llama, texts(4), [TOP], cache=cache).prompts_forwarded == 4
    low = load(tiny_llama.ref, dtype="bfloat16", progress=False)
    assert ActivationCache.of(low, tmp_path).folder != cache.folder


def test_what_other_code_of_ours_read_is_not_taken_for_its_own(tiny_llama, tmp_path, monkeypatch):
    """Modules of the engine and of the model's room, those of one name in both among them; the version of the distribution need not change."""
    copies = tmp_path / "mi_audit"
    for name in cache_module.CODE:
        shutil.copytree(Path(cache_module.__file__).parents[1] / name, copies / name)
    monkeypatch.setattr(cache_module, "__file__", str(copies / "engine" / "cache.py"))
    folders = {ActivationCache.of(tiny_llama, tmp_path).folder}
    for module in ("engine/reduction.py", "engine/progress.py", "model/progress.py", "model/sinks.py"):
        with (copies / module).open("a") as file:
            file.write("# changed")
        folders.add(ActivationCache.of(tiny_llama, tmp_path).folder)
    assert len(folders) == 5


def test_a_disk_that_refuses_ends_the_keeping_and_not_the_run(tiny_llama, tmp_path):
    (tmp_path / "file").write_text("")
    cache = ActivationCache.of(tiny_llama, tmp_path / "file" / "below")
    assert capture(tiny_llama, texts(5), [TOP], cache=cache).prompts_forwarded == 5
    assert cache.trouble and "below" in cache.trouble


def test_a_prompt_that_cannot_be_read_is_an_error_from_the_cache_too(tiny_llama, tmp_path):
    tiny_llama.base.get_input_embeddings().weight[tiny_llama.tokenizer.convert_tokens_to_ids("!")] = float("nan")
    for _ in range(2):
        with pytest.raises(PromptError, match="'bad'"):
            capture(tiny_llama, [*texts(3), Prompt("bad", text="ab!")], [TOP], cache=ActivationCache.of(tiny_llama, tmp_path))


def test_the_least_used_goes_first_and_clearing_leaves_nothing(tiny_llama, tmp_path):
    cache = ActivationCache.of(tiny_llama, tmp_path)
    for n in (3, 4, 5):
        capture(tiny_llama, texts(n), [TOP], cache=cache)
    known = {entry: size for entry, _, size in entries(tmp_path)}
    oldest = next(iter(known))
    os.utime(oldest, (0, 0))
    assert shrink(tmp_path, sum(known.values()) - 1) == known[oldest]
    assert {entry for entry, _, _ in entries(tmp_path)} == set(known) - {oldest}
    assert clear(tmp_path) > 0 and not tmp_path.exists()


def kept_as(cache, change):
    """The one batch of the cache, its tensors changed, under the name that fits its new bytes."""
    (file,) = batches(cache.folder)
    content = change(load_tensors(file.read_bytes()))
    file.unlink()
    (file.parent / f"{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)


def narrower(tensors):
    return save_tensors({name: tensor[:, :-1].copy() if name.endswith("vectors") else tensor for name, tensor in tensors.items()})


def of_unknown_dtype(tensors):
    header = json.dumps({name: {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [at, at + 1]} for at, name in enumerate(tensors)}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(len(tensors))


@pytest.mark.parametrize(("change", "damaged"), [(narrower, 0), (of_unknown_dtype, 1)])
def test_a_file_that_fits_its_name_and_not_the_model_is_not_believed(tiny_llama, tmp_path, change, damaged):
    cache = ActivationCache.of(tiny_llama, tmp_path)
    plain = capture(tiny_llama, texts(5), [TOP], cache=cache)
    kept_as(cache, change)
    again = capture(tiny_llama, texts(5), [TOP], cache=cache)
    assert (len(cache.damaged), again.prompts_forwarded) == (damaged, 5)
    same(again, plain, [TOP])


def test_a_pipe_in_the_cache_does_not_block(tiny_llama, tmp_path):
    cache = ActivationCache.of(tiny_llama, tmp_path)
    plain = capture(tiny_llama, texts(5), [TOP], cache=cache)
    (file,) = batches(tmp_path)
    file.unlink()
    os.mkfifo(file)
    again = capture(tiny_llama, texts(5), [TOP], cache=cache)
    assert again.prompts_forwarded == 5
    same(again, plain, [TOP])


def test_a_damaged_file_that_can_not_be_removed_does_not_end_the_run(tiny_llama, tmp_path, monkeypatch):
    """A read-only disk; not by mode, which does not bind root."""
    plain = capture(tiny_llama, texts(5), [TOP], cache=ActivationCache.of(tiny_llama, tmp_path))
    (file,) = batches(tmp_path)
    file.write_bytes(b"damaged")

    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("unlink", "write_bytes", "mkdir"):
        monkeypatch.setattr(Path, name, refused)
    cache = ActivationCache.of(tiny_llama, tmp_path)
    again = capture(tiny_llama, texts(5), [TOP], cache=cache)
    assert (len(cache.damaged), again.prompts_forwarded) == (1, 5)
    assert "Read-only file system" in cache.trouble
    same(again, plain, [TOP])


def test_a_file_system_without_locks_ends_the_keeping_and_not_the_run(tiny_llama, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(cache_module.FileLock, "acquire", refused)
    cache = ActivationCache.of(tiny_llama, tmp_path)
    assert capture(tiny_llama, texts(5), [TOP], cache=cache).prompts_forwarded == 5
    assert "does not appear to support flock" in cache.trouble


def test_the_cache_is_for_its_owner_alone(tiny_llama, tmp_path):
    capture(tiny_llama, texts(5), [TOP], cache=ActivationCache.of(tiny_llama, tmp_path / "of" / "all"))
    assert (tmp_path / "of" / "all").stat().st_mode & 0o777 == 0o700


def test_a_model_spread_otherwise_is_another_entry(tiny_llama, tmp_path):
    def folder(device, balanced=True):
        identity = replace(tiny_llama.identity, device=device)
        return ActivationCache.of(replace(tiny_llama, identity=identity, placement=Placement(tiny_llama.device, balanced)), tmp_path).folder

    assert folder("cuda:0-1, balanced") != folder("cuda:0-1 and cpu, balanced")
    assert folder("cuda:0", balanced=False) == folder("cuda:1", balanced=False)


def test_what_a_cache_says_of_a_model_does_nothing_to_a_terminal(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    for number in range(2):
        capture(tiny_llama, texts(5), [TOP], cache=ActivationCache(activations_dir() / f"m{number}\x1b[2J", {}))
    (activations_dir() / "m0\x1b[2J" / FACTS).write_text(json.dumps({"ref": "\x1b[31mred", "root": "\x1b]0;t\x07\nforged", "dtype": "\u202ex", "device": "\r"}))
    (activations_dir() / "m1\x1b[2J" / FACTS).write_text("[" * 60_000)
    said = CliRunner().invoke(app, ["list"])
    assert said.exit_code == 0, said
    lines = said.output.splitlines()
    assert len(lines) == 4 and all(character.isprintable() for line in lines for character in line)
    assert "⟨U+001B⟩" in lines[0] and "m1⟨U+001B⟩[2J" in lines[1]
