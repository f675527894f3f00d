"""Where models go, who holds a GPU, and a model whose weights are not all where it computes."""

import gc
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import dispatch_model

from mi_audit.engine.capture import Site, capture
from mi_audit.engine.intervening import Intervening, Step
from mi_audit.engine.interventions import Scale
from mi_audit.errors import ModelError
from mi_audit.model import locks
from mi_audit.model.cache import ENVIRONMENT
from mi_audit.model.checkpoint import inspect
from mi_audit.model.devices import Gpu, Placement, choose_device, described, place, place_beside
from mi_audit.model.hook_map import NAMES
from mi_audit.model.hook_points import HookPoints
from mi_audit.model.load import load
from mi_audit.model.locks import hold_all, hold_first
from mi_audit.model.packing_check import check_packing
from mi_audit.model.self_check import check_prompts, self_check
from mi_audit.model.structure import text_config
from mi_audit.model.transformers_io import read
from mi_audit.plan.places import At, Tokens
from mi_audit.suites.prompt import Prompt
from tests.agreement.tiny_models import LAYERS, tiny

CPU = torch.device("cpu")
OTHER_PROCESS = """
import sys
from mi_audit.model.locks import hold_first
index, lock = hold_first(sys.argv[1:], lambda text: print(text, flush=True))
print(index, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))


def silent(text):
    raise AssertionError(f"nothing was to be said, but: {text}")


class Other:
    """Another process that holds the first of some GPUs until it is told to end, or killed."""

    def __init__(self, *names):
        self.process = subprocess.Popen([sys.executable, "-c", OTHER_PROCESS, *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def line(self):
        return self.process.stdout.readline().strip()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __exit__(self, *_):
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


def test_processes_take_one_gpu_each_and_a_killed_one_gives_its_back():
    with Other("cuda-a", "cuda-b") as other:
        assert other.line() == "0"
        index, lock = hold_first(["cuda-a", "cuda-b"], silent)
        assert index == 1
        assert hold_first(["cuda-b"], silent)[1] is lock, "a process shares what it holds with itself"
        other.kill()
        assert hold_first(["cuda-a"], silent)[0] == 0


def test_a_process_waits_and_says_so(monkeypatch):
    monkeypatch.setattr(locks, "SILENT", 0.5)
    said, began = [], time.monotonic()
    with Other("cuda-a", "cuda-b") as first, Other("cuda-b") as second:
        assert (first.line(), second.line()) == ("0", "0")

        def say(text):
            said.append((time.monotonic() - began, text))
            second.kill()

        assert hold_first(["cuda-a", "cuda-b"], say)[0] == 1
    ((waited, text),) = said
    assert waited >= 0.5
    assert text == "waiting for one of cuda-a, cuda-b: in use by another mi-audit process"


def test_what_nobody_refers_to_is_free_again():
    held = hold_all(["cuda-a", "cuda-b"], silent)
    assert len(held) == 2
    with Other("cuda-a", "cuda-b", "cuda-c") as other:
        assert other.line() == "2"
    del held
    gc.collect()
    with Other("cuda-a") as other:
        assert other.line() == "0"


def test_who_waits_for_all_holds_none_but_what_the_process_held_before(monkeypatch):
    monkeypatch.setattr(locks, "SILENT", 0.5)
    mine, said = hold_first(["cuda-0"], silent), []
    with Other("cuda-b") as holder, Other("cuda-c") as late:
        assert (holder.line(), late.line()) == ("0", "0")

        def say(text):
            said.append(text)
            with Other("cuda-a", "cuda-b") as other, Other("cuda-0", "cuda-d") as another:
                assert (other.line(), another.line()) == ("0", "1")
            holder.kill()
            late.kill()

        assert len(hold_all(["cuda-c", "cuda-b", "cuda-a", "cuda-0"], say)) == 4
    assert said == ["waiting for all of cuda-c, cuda-b, cuda-a, cuda-0: in use by another mi-audit process"]
    assert mine[1].is_locked


def test_locks_that_can_not_be_written_name_the_setting(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set MI_AUDIT_CACHE to a folder that you can write"):
        hold_first(["cuda-a"], silent)


def on_gpus(monkeypatch, *free):
    """Two GPUs, as far as choosing goes: only their number is asked of torch, and what is free of the list itself."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    return [Gpu(f"cuda-{index}", lambda free=each: free) for index, each in enumerate(free)]


def test_a_model_goes_to_the_first_free_gpu_and_over_all_where_one_is_too_small(monkeypatch):
    found = on_gpus(monkeypatch, 100, 100)
    one = place("auto", 90, found, silent)
    assert (str(one.device), one.balanced, len(one.locks)) == ("cuda:0", False, 1)
    assert str(place("cuda:1", 1000, found, silent).device) == "cuda:1"
    spread = place("auto", 91, found, silent)
    assert (spread.balanced, len(spread.locks)) == (True, 2)
    assert place("balanced", 1, found, silent).balanced
    assert not place("auto", 91, on_gpus(monkeypatch, 100), silent).balanced
    del one, spread
    gc.collect()
    with Other("cuda-0") as other:
        assert other.line() == "0"
        assert str(place("auto", 1, on_gpus(monkeypatch, 100, 100), silent).device) == "cuda:1"


def test_the_float32_model_goes_beside_or_to_the_cpu(monkeypatch):
    found = on_gpus(monkeypatch, 100, 100)
    there, spread = Placement(torch.device("cuda:1")), Placement(torch.device("cuda:0"), balanced=True)
    assert place_beside(there, 90, found) is there
    assert place_beside(there, 91, found) == Placement(CPU)
    assert place_beside(spread, 1000, found) is spread
    assert place_beside(Placement(CPU), 1, []) == Placement(CPU)


def test_devices_in_words():
    assert described(Placement(torch.device("cuda:1")), ()) == "cuda:1"
    spread = Placement(torch.device("cuda:0"), balanced=True)
    assert described(spread, (0, 0, 1, torch.device("cuda:2"))) == "cuda:0-2, balanced"
    assert described(spread, (0, "cpu", 2)) == "cuda:0, 2 and cpu, balanced"


def test_unknown_and_absent_devices_are_refused():
    with pytest.raises(ModelError, match="'abacus' is no device: give auto, cpu, cuda, cuda:1, mps or balanced"):
        choose_device("abacus")
    if not torch.cuda.is_available():
        for name in ("cuda", "cuda:1"):
            with pytest.raises(ModelError, match=f"'{name}' is not available here"):
                choose_device(name)
        with pytest.raises(ModelError, match="spreads a model over GPUs, and there is none here"):
            choose_device("balanced")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "gpt_neox"])
def test_a_model_with_weights_on_disk_reads_as_one_in_memory(architecture, tiny_folder, tmp_path):
    """Accelerate's hooks bring weights when a module is called and take them away again, so that between calls they are nowhere."""
    plain = load(str(tiny_folder), device="cpu", progress=False)
    models = []
    for spread in (False, True):
        hf, tokenizer = tiny(architecture)
        if spread:
            hf = dispatch_model(hf, _half_on_disk(hf), main_device="cpu", offload_dir=tmp_path)
        points = HookPoints.of(hf)
        checked, points = self_check(points, tokenizer)
        packing = check_packing(points, text_config(hf), check_prompts(points, tokenizer))
        models.append(replace(plain, hf=hf, tokenizer=tokenizer, hook_points=points, self_check=checked, packing=packing))
    whole, parted = models
    assert {each.device.type for each in parted.hf.parameters()} == {"cpu", "meta"}
    assert parted.hook_points.decoder.embedding.weight.device.type == "meta"
    assert (parted.device, parted.dtype) == (CPU, torch.float32)
    assert (parted.self_check, parted.packing) == (whole.self_check, whole.packing)
    assert parted.self_check.passed
    assert parted.hook_points.available() == whole.hook_points.available()
    prompts = [Prompt(f"p{n}", text="abcdefghij"[:n] * n) for n in range(1, 9)]
    sites = [Site(At(tap.name, layer=tap.layer), Tokens(kind)) for tap in parted.hook_points.taps for kind in ("last", "all")]
    assert {site.at.point for site in sites} >= set(NAMES) - {"resid_mid"}
    here, there = capture(whole, prompts, sites), capture(parted, prompts, sites)
    for site in sites:
        np.testing.assert_array_equal(there.vectors(site), here.vectors(site))
    for at in {site.at for site in sites}:
        here_changed, there_changed = (doubled(model, at) for model in models)
        assert torch.equal(there_changed, here_changed), at


@torch.no_grad()
def doubled(model, at):
    """Logits with every activation at a hook point twice as long."""
    ids = torch.tensor([[1, 90, 17, 60, 33]])
    with Intervening(model, [at]) as intervening, intervening.applying([Step(at, torch.ones_like(ids, dtype=torch.bool), Scale(2.0))]):
        return model.hf(input_ids=ids).logits


def _half_on_disk(hf):
    """The embedding (with the head that may share its weights) and every other block on disk, the rest in memory."""
    blocks = next(name for name, module in hf.named_modules() if isinstance(module, torch.nn.ModuleList) and len(module) == LAYERS)
    base = blocks.rpartition(".")[0]
    parts = [name for name, _ in hf.named_children() if name != base] + [f"{base}.{name}" for name, _ in hf.get_submodule(base).named_children()]
    embedding = next(name for name, module in hf.named_modules() if module is hf.get_input_embeddings())
    head = next(name for name, module in hf.named_modules() if module is hf.get_output_embeddings())
    on_disk = {embedding, head} | {f"{blocks}.{layer}" for layer in range(0, LAYERS, 2)}
    names = [name for name in parts if name != blocks] + [f"{blocks}.{layer}" for layer in range(LAYERS)]
    return {name: "disk" if name in on_disk else "cpu" for name in names}


def test_a_spread_model_goes_through_accelerate_and_its_size_is_known_before(tiny_folder):
    sizes = []

    def spread(size):
        sizes.append(size)
        return Placement(CPU, balanced=True)

    found = read(inspect(tiny_folder), "tiny", torch.bfloat16, spread)
    assert sizes == [2 * found.hf.num_parameters()]
    assert described(found.placement, found.parts) == "cpu, balanced"
