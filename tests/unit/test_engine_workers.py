"""Passes side by side: the same numbers, no listener or lock left behind, and one at a time where a model could not bear more."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Lock, get_ident

import numpy as np
import pytest
import torch

from mi_audit.engine import passing
from mi_audit.engine.batches import plan_batches
from mi_audit.engine.cache import ActivationCache, batch_key
from mi_audit.engine.capture import Site, capture
from mi_audit.engine.listening import Listening
from mi_audit.engine.passing import Work, work_through
from mi_audit.engine.tokens import encode
from mi_audit.engine.workers import side_by_side
from mi_audit.errors import ModelError, PromptError
from mi_audit.model import reentrant
from mi_audit.model.load import load
from mi_audit.model.packing import Packing
from mi_audit.model.reentrant import is_reentrant
from mi_audit.plan.places import At, Tokens
from mi_audit.suites.prompt import Prompt
from tests.agreement.tiny_models import LAYERS, save_tiny
from tests.unit.texts import texts

TOP, MEAN = Site(At("resid_post", layer=2), Tokens("last")), Site(At("resid_pre", layer=1), Tokens("all"))


def meeting(model):
    """Have passes wait, as they begin, until as many as the barrier takes are there; the threads that passed by."""
    barrier, threads = Barrier(3), []

    def wait(module, args):
        threads.append(get_ident())
        if len(threads) <= 3:
            barrier.wait(timeout=20)

    return threads, model.base.get_input_embeddings().register_forward_pre_hook(wait)


def test_passes_side_by_side_give_the_same_numbers_bit_for_bit(tiny_llama, cores, tmp_path):
    cores(1)
    alone = capture(tiny_llama, texts(60), [TOP, MEAN], budget=64)
    capture(tiny_llama, texts(60), [TOP], budget=64, cache=ActivationCache.of(tiny_llama, tmp_path))
    cores(3)
    threads, handle = meeting(tiny_llama)
    shares = []
    counted = tiny_llama.base.layers[0].register_forward_pre_hook(lambda *_: shares.append(torch.get_num_threads()))
    beside = capture(tiny_llama, texts(60), [TOP, MEAN], budget=64)
    handle.remove()
    counted.remove()
    assert len(set(threads)) == 3 and set(shares) == {1}
    completed = capture(tiny_llama, texts(60), [TOP, MEAN], budget=64, cache=ActivationCache.of(tiny_llama, tmp_path))  # each batch lacks one of the sites
    for captures in (beside, completed):
        assert captures.prompts_forwarded == 60
        for site in (TOP, MEAN):
            np.testing.assert_array_equal(captures.vectors(site), alone.vectors(site))
    assert torch.get_num_threads() == 3


def test_a_batch_that_cannot_pass_leaves_no_lock_and_no_fewer_cores(tiny_llama, cores, tmp_path):
    cores(3)
    ids = [encode(tiny_llama.tokenizer, prompt).ids for prompt in texts(60)]
    batches = plan_batches(ids, tiny_llama.packing, 64)
    broken, other = (tiny_llama.base.get_input_embeddings().weight[token] for token in (ids[batches[4].prompts[0]][-1], 0))
    kept = broken.clone()
    with torch.no_grad():
        broken.copy_(other * torch.nan)
    with pytest.raises(PromptError, match="is not finite"):
        capture(tiny_llama, texts(60), [TOP], budget=64, cache=ActivationCache.of(tiny_llama, tmp_path))
    with torch.no_grad():
        broken.copy_(kept)
    assert torch.get_num_threads() == 3
    beside = ActivationCache.of(tiny_llama, tmp_path)
    assert all(beside.try_lock(batch_key(batch, ids)) for batch in batches)


def test_passes_are_stopped_at_their_next_block(tiny_llama):
    at, inside, go, reached = At("resid_post", layer=2), Event(), Event(), []

    def wait(module, args):
        inside.set()
        assert go.wait(timeout=20)

    handles = [
        tiny_llama.base.layers[1].register_forward_pre_hook(wait),
        tiny_llama.base.layers[2].mlp.register_forward_pre_hook(lambda *_: reached.append(True)),
    ]
    with Listening(tiny_llama, [at]) as listening, ThreadPoolExecutor(1) as beside:
        called = {"input_ids": torch.tensor([[1, 2, 3]]), "use_cache": False}
        passing = beside.submit(listening.pass_through, {at}, called, lambda *_: reached.append(True))
        assert inside.wait(timeout=20)
        listening.stop()
        go.set()
        assert passing.exception(timeout=20) is not None
    assert not reached
    for handle in handles:
        handle.remove()


def test_what_nobody_waits_for_any_more_ends_and_what_has_passed_is_kept(tiny_llama, cores, tmp_path):
    cores(2)
    prompts = texts(60)
    ids = [encode(tiny_llama.tokenizer, prompt).ids for prompt in prompts]
    batches, cache = plan_batches(ids, tiny_llama.packing, 64), ActivationCache.of(tiny_llama, tmp_path)
    positions = {TOP.tokens: [[len(each) - 1] for each in ids]}
    work = Work(tiny_llama, ids, positions, [prompt.id for prompt in prompts], (TOP,), cache)
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in tiny_llama.base.modules())
    results = work_through(work, batches)
    next(results)
    results.close()
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in tiny_llama.base.modules()) == hooks
    assert torch.get_num_threads() == 2
    beside = ActivationCache.of(tiny_llama, tmp_path)
    assert all(beside.try_lock(batch_key(batch, ids)) for batch in batches)
    assert 1 <= sum(beside.has(batch_key(batch, ids)) for batch in batches) < len(batches)


def test_a_long_prompt_passes_alone_and_on_all_cores(tiny_llama, cores, monkeypatch):
    cores(3)
    monkeypatch.setattr(passing, "DEFAULT_BUDGET", 128)
    under_way, seen = [], []

    def begins(module, args):
        under_way.append(args[0].shape[1])
        seen.append((args[0].shape[1], len(under_way), torch.get_num_threads()))

    tiny_llama.base.layers[0].register_forward_pre_hook(begins)
    tiny_llama.base.layers[2].register_forward_hook(lambda module, args, output: under_way.remove(args[0].shape[1]))
    object.__setattr__(tiny_llama, "packing", Packing(reason="asked for"))
    long = [Prompt(f"long{n}", text="x" * (140 + n)) for n in range(3)]
    capture(tiny_llama, [*long, *texts(60)], [Site(At("resid_post", layer=LAYERS - 1), Tokens("last"))], budget=128)
    assert [(beside, cores) for length, beside, cores in seen if length > 128] == [(1, 3)] * 3
    assert {cores for length, _, cores in seen if length <= 128} == {1}
    seen.clear()
    threads, _ = meeting(tiny_llama)
    capture(tiny_llama, texts(60), [Site(At("resid_post", layer=LAYERS - 1), Tokens("last"))], budget=1000)  # of several prompts, however large
    assert {cores for *_, cores in seen} == {1} and len(set(threads)) == 3


def test_passes_leave_few_cores_idle():
    assert [(cores, side_by_side(cores)) for cores in (1, 2, 5, 8, 12, 15, 16, 31)] == [(1, 1), (2, 2), (5, 5), (8, 8), (12, 6), (15, 5), (16, 8), (31, 6)]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gemma2", "gemma3", "olmo2", "gpt2", "gpt_neox"])
def test_usual_architectures_bear_passes_side_by_side(tmp_path, architecture):
    save_tiny(tmp_path, architecture)
    assert load(str(tmp_path), progress=False).reentrant


@pytest.mark.parametrize(
    "leave",
    [
        lambda module, args, output: setattr(module, "last", output),
        lambda module, args, output: module.kept.__setitem__("length", output.shape[1] + 1000),
        lambda module, args, output: module.count.add_(1),
    ],
    ids=["attribute", "entry", "buffer"],
)
def test_a_model_whose_passes_leave_something_in_it_has_one_at_a_time(tiny_llama, cores, leave):
    cores(3)
    module = tiny_llama.base.layers[1].mlp
    module.last, module.kept = None, {}
    module.register_buffer("count", torch.zeros(1))
    module.register_forward_hook(leave)
    prompts = [torch.arange(5), torch.arange(9)]
    assert not is_reentrant(tiny_llama.hook_points.decoder, prompts)
    object.__setattr__(tiny_llama, "reentrant", False)
    threads = []
    tiny_llama.base.get_input_embeddings().register_forward_pre_hook(lambda *_: threads.append(get_ident()))
    capture(tiny_llama, texts(20), [TOP], budget=64)
    assert len(threads) > 1 and len(set(threads)) == 1


def gone_after_a_pass(layers):
    noted = []
    layers[0].register_forward_pre_hook(lambda module, args: noted.append(args[0].shape[1]))
    layers[-1].register_forward_hook(lambda module, args, output: output * sum(noted))
    layers[-1].register_forward_hook(lambda module, args, output: noted.clear())


def gone_after_the_next_block(layers):
    noted = []
    layers[0].register_forward_pre_hook(lambda module, args: noted.append(args[0].shape[1]))
    layers[1].register_forward_pre_hook(lambda module, args: (args[0] * noted.pop(),))


def gone_after_a_module(layers):
    noted, mlp = [], layers[0].mlp
    mlp.gate_proj.register_forward_pre_hook(lambda module, args: noted.append(args[0].shape[1]))
    mlp.down_proj.register_forward_hook(lambda module, args, output: output * sum(noted))
    mlp.register_forward_hook(lambda module, args, output: noted.clear())


def put_back_after_a_module(layers):
    mlp, lengths = layers[0].mlp, [1]
    within = mlp.forward

    def forward(acts):
        before, lengths[0] = lengths[0], acts.shape[1]
        try:
            return within(acts) * lengths[0]
        finally:
            lengths[0] = before

    mlp.forward = forward


@pytest.mark.parametrize("state", [gone_after_a_pass, gone_after_the_next_block, gone_after_a_module, put_back_after_a_module])
def test_state_that_a_pass_takes_away_again_is_found_while_another_passes(tiny_llama, state):
    decoder = tiny_llama.hook_points.decoder
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in decoder.base.modules()]
    assert is_reentrant(decoder, [torch.arange(5), torch.arange(9)])
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in decoder.base.modules()] == hooks
    state(decoder.base.layers)
    assert not is_reentrant(decoder, [torch.arange(5), torch.arange(9)])


def test_a_model_that_locks_itself_has_one_pass_at_a_time(tiny_llama, monkeypatch):
    monkeypatch.setattr(reentrant, "PATIENCE", 0.2)
    decoder, lock = tiny_llama.hook_points.decoder, Lock()
    mlp = decoder.base.layers[1].mlp
    within = mlp.forward

    def forward(acts):
        with lock:
            return within(acts)

    mlp.forward = forward
    assert not is_reentrant(decoder, [torch.arange(5), torch.arange(9)])


@pytest.mark.parametrize("changed", [torch.full_like, lambda output, _: output + torch.rand(1)], ids=["no number", "random"])
def test_a_model_that_is_unsteady_by_itself_has_one_pass_at_a_time(tiny_llama, changed):
    decoder = tiny_llama.hook_points.decoder
    decoder.base.layers[0].mlp.register_forward_hook(lambda module, args, output: changed(output, torch.nan))
    assert not is_reentrant(decoder, [torch.arange(5), torch.arange(9)])


def test_a_model_that_two_passes_leave_changed_is_refused(tiny_llama):
    decoder, noted = tiny_llama.hook_points.decoder, []
    mlp = decoder.base.layers[0].mlp
    within = mlp.forward

    def forward(acts):
        noted.append(acts.shape[1])
        acts = within(acts)
        assert len(noted) == 1
        return acts * noted.pop()

    mlp.forward = forward
    with pytest.raises(ModelError, match="LlamaModel: two passes side by side leave something behind"):
        is_reentrant(decoder, [torch.arange(5), torch.arange(9)])
