"""Variants of a prompt whose lower blocks and first tokens are passed once equal whole passes of the same rows, and leave nothing in the model."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from threading import Barrier, Event

import pytest
import torch

from mi_audit.engine.batches import Batch
from mi_audit.engine.fork_check import why_whole
from mi_audit.engine.intervening import Intervening, Step
from mi_audit.engine.interventions import Ablate, Add, ProjectOut, Replace, Scale
from mi_audit.engine.layout import Layout
from mi_audit.engine.variants import Read, holding, how_passed, read_variants
from mi_audit.errors import HookPointError, NotFiniteError, PromptError
from mi_audit.model.load import load
from mi_audit.plan.places import At
from mi_audit.sae_sources import sae
from mi_audit.saes.clamping import ClampLatent
from tests.agreement.tiny_models import LAYERS, save_tiny
from tests.unit.saes import save_sae

IDS = (1, 90, 17, 60, 33, 8, 101, 45, 72, 20, 64, 230, 12, 55)
LATE, EARLY = (10, 11, 13), (3, 5)
VARIANTS = 5
WITHIN = 5e-6
POINTS = ("embed", "resid_pre", "resid_mid", "attn_out", "mlp.hook_post", "resid_post")


def everything(found, base):
    return found.flatten(start_dim=1)


def kinds(width, folder):
    """Name → from some of the variants to the intervention on them."""
    draw = torch.Generator().manual_seed(width)
    vectors, values, a = (torch.randn(*shape, generator=draw) for shape in ((VARIANTS, width), (VARIANTS, 3), (VARIANTS,)))
    directions, chosen = torch.randn(VARIANTS, 2, width, generator=draw), torch.rand(VARIANTS, 3, generator=draw) < 0.6
    spec = sae(save_sae(folder / str(width), width, 40, metadata={"hook_name": "blocks.1.hook_resid_post"}))
    return {
        "add": lambda rows: Add(vectors[0], 2 * a[rows]),
        "add to each its own": lambda rows: Add(vectors[rows], a[rows], "norm"),
        "scale": lambda rows: Scale(a[rows]),
        "ablate": lambda rows: Ablate(vectors[1]),
        "replace": lambda rows: Replace(vectors[2]),
        "project out": lambda rows: ProjectOut(directions[rows], 1 + a[rows].abs()),
        "clamp": lambda rows: ClampLatent(spec, (1, 7, 30), 20 * values[rows], chosen[rows]),
    }


def whole(model, touched, places, intervention, positions):
    """(base, found) of whole passes of rows that hold all tokens."""
    layout = Layout.of(Batch(tuple((number,) for number in range(VARIANTS)), packed=False), [IDS] * VARIANTS, model.device)
    called, mask = layout.arguments(model, None), layout.mask([touched] * VARIANTS)
    with torch.no_grad(), Intervening(model, places) as intervening:
        base = model.hf(**called).logits[0, list(positions)]
        with intervening.applying([Step(at, mask, intervention(torch.arange(VARIANTS))) for at in places]):
            return base.flatten().double(), model.hf(**called).logits[:, list(positions)].flatten(start_dim=1).double()


def off(one, other):
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max())


def left_in(model):
    """What hooks and replaced forwards the modules hold."""
    return [(name, len(each._forward_hooks), len(each._forward_pre_hooks), "forward" in vars(each)) for name, each in model.hf.named_modules()]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "gpt_neox", "olmo2"])
def test_they_equal_whole_passes(architecture, tmp_path):
    model = load(str(save_tiny(tmp_path / "model", architecture)), device="cpu", progress=False)
    before = left_in(model)
    points = [point for point in POINTS if point in model.hook_points.names]
    several = [[At("resid_mid" if "resid_mid" in points else "attn_out", layer=1), At("attn_out", layer=2)], [At("resid_post", layer=0), At("embed")]]
    alone = [[At(point, layer=layer)] for point in points for layer in ((None,) if point == "embed" else (0, 2, LAYERS - 1))]
    assert why_whole(model) == ""
    ways = cycle([(LATE, (13,), 512), (LATE, (13, 11), 10), (EARLY, (5, 13), 30)])  # as many as do not divide the number of kinds: each kind meets each
    for places in alone + several:
        width = model.hook_points.resolve(places[0].point, places[0].layer).width
        for (name, intervention), (touched, positions, budget) in zip(kinds(width, tmp_path).items(), ways, strict=False):

            def applied(rows, places=places, intervention=intervention):
                return [(at, intervention(rows)) for at in places]

            ours = read_variants(model, IDS, touched, places, VARIANTS, applied, Read(positions, everything), budget=budget)
            base, found = whole(model, touched, places, intervention, positions)
            assert ours[1].shape == found.shape and ours[1].dtype == torch.float64 and not ours[1].is_inference()
            assert off(ours[0], base) < WITHIN and off(ours[1], found) < WITHIN, (places, name, touched)
            assert off(found, base) > 100 * WITHIN, (places, name, touched)
    assert left_in(model) == before


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_what_is_not_asked_for_is_not_computed(architecture, tmp_path):
    """Blocks below the place and tokens before the first touched are passed once, blocks after what is read never; nothing is shared beyond a window."""
    model = load(str(save_tiny(tmp_path, architecture)), device="cpu", progress=False)
    assert why_whole(model) == ""
    seen = []
    for layer, block in enumerate(model.hook_points.decoder.blocks):
        inner = next(module for name, module in block.module.named_modules() if name.endswith(("down_proj", "mlp.c_proj")))
        inner.register_forward_hook(lambda module, args, output, layer=layer: seen.append((layer, *output.shape[:2])))

    def passed(point, layer, at=None, ids=IDS, touched=LATE):
        seen.clear()
        read_variants(
            model, ids, touched, [At(point, layer=layer)], 3, lambda rows: [(At(point, layer=layer), Scale(2.0))], Read((len(ids) - 1,), everything, at)
        )
        return seen[:]

    once = [(layer, 1, len(IDS)) for layer in range(LAYERS)]
    rows = (3, len(IDS)) if architecture == "mistral" else (3, len(IDS) - LATE[0])
    assert passed("resid_pre", 2) == [*once, (2, *rows), (3, *rows)]
    assert passed("resid_post", 1) == [*once, (2, *rows), (3, *rows)]
    assert passed("resid_post", 3) == once
    assert passed("attn_out", 1, At("resid_pre", layer=3)) == [*once[:3], (1, *rows), (2, *rows)]
    assert passed("embed", None, At("attn_out", layer=0)) == []  # its feed-forward comes later
    assert passed("mlp_out", 3, touched=(8, 13)) == [*once, (3, 3, rows[1] if architecture == "mistral" else 6)]
    assert passed("mlp_out", 3, touched=(7, 13)) == [*once, (3, 3, 14)]


def test_an_activation_is_read_after_what_is_changed_there(tiny_llama):
    vectors = torch.randn(VARIANTS, 32, generator=torch.Generator().manual_seed(0))
    here, there = At("resid_mid", layer=1), At("resid_post", layer=2)

    def added(rows):
        return [(here, Add(vectors[rows], 1.0))]

    base, found = read_variants(tiny_llama, IDS, LATE, [here], VARIANTS, added, Read((12, 13), everything, here), budget=10)
    expected = base.reshape(2, 32) + torch.stack([torch.zeros(VARIANTS, 32), vectors], dim=1)
    assert off(found.reshape(VARIANTS, 2, 32), expected) < WITHIN
    base, found = read_variants(tiny_llama, IDS, LATE, [here], VARIANTS, added, Read((13,), lambda found, base: (found - base)[:, 0], there))
    heard = []
    handle = tiny_llama.hook_points.resolve("resid_post", 2).listen(lambda acts: heard.append(acts[:, 13].double()))
    whole(tiny_llama, LATE, [here], lambda rows: Add(vectors[rows], 1.0), (13,))
    handle.remove()
    assert not base.any() and off(found, heard[1] - heard[0]) < WITHIN
    with pytest.raises(HookPointError, match="comes by it before resid_mid at layer 1"):
        read_variants(tiny_llama, IDS, LATE, [here], VARIANTS, added, Read((13,), everything, At("attn_out", layer=1)))
    with pytest.raises(HookPointError, match="no forward pass came by resid_post at layer 2"):
        read_variants(tiny_llama, IDS, LATE, [here, there], VARIANTS, lambda rows: [(there, Scale(2.0))], Read((13,), everything, At("mlp_out", layer=1)))
    with pytest.raises(HookPointError, match="no hook point is named"):
        read_variants(tiny_llama, IDS, LATE, [], VARIANTS, lambda rows: [], Read((13,), everything))


@pytest.mark.parametrize(("touched", "positions"), [((), (13,)), ((14,), (13,)), ((3,), (-1,)), ((3,), ())])
def test_positions_are_the_prompts(touched, positions, tiny_llama):
    with pytest.raises(PromptError, match="name one at least, and none beyond"):
        read_variants(tiny_llama, IDS, touched, [At("embed")], 1, lambda rows: [], Read(positions, everything))


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error(error, tiny_llama):
    before, place = left_in(tiny_llama), At("resid_post", layer=1)
    own = tiny_llama.hook_points.decoder.blocks[0].module
    kept = own.forward = own.forward  # as accelerate has it: put back, not taken away

    class Broken:
        width = None

        def __call__(self, acts):
            assert left_in(tiny_llama) != before and own.forward is not kept
            raise error

    with pytest.raises(error):
        read_variants(tiny_llama, IDS, LATE, [place], 2, lambda rows: [(place, Broken())], Read((13,), everything))
    assert own.forward is kept
    del own.forward
    with pytest.raises(error):
        read_variants(tiny_llama, IDS, LATE, [place], 2, lambda rows: [(place, Broken())], Read((13,), everything))
    assert left_in(tiny_llama) == before
    with pytest.raises(HookPointError, match="layer from 0"):
        read_variants(tiny_llama, IDS, LATE, [place, At("resid_post", layer=9)], 2, lambda rows: [], Read((13,), everything))
    assert left_in(tiny_llama) == before
    assert not read_variants(tiny_llama, IDS, LATE, [place], 2, lambda rows: [(place, Scale(1.0))], Read((13,), lambda found, base: found[:, 0] * 0))[1].any()


def test_the_first_variant_that_is_not_finite_is_named(tiny_llama):
    before, place = left_in(tiny_llama), At("resid_post", layer=1)
    factors = torch.tensor([1.0, 2.0, 1e30, 1.0, 3e38])

    def read(values, touched=LATE, places=(place,), interventions=lambda rows: [(place, Scale(factors[rows]))] * 2, at=None):
        with pytest.raises(NotFiniteError) as caught:
            read_variants(tiny_llama, IDS, touched, places, 5, interventions, Read((12,), values, at), budget=8)
        return caught.value.variant, str(caught.value)

    assert read(everything) == (
        2,
        f"variant 2 of a prompt: what interventions put in at {place} is not finite: torch.float32 does not hold it, or what stood there was not finite",
    )
    assert read(everything, (13, 12))[0] == 2 and read(everything, (13,))[0] == 2  # none reads what stands at token 13
    # held by float32, but not its length, which a norm would take
    neurons, there = At("mlp.hook_post", layer=1), At("resid_post", layer=1)
    vectors = torch.tensor([1.0, 1.0, 1.0, 3e38, 1.0])[:, None] * tiny_llama.hook_points.resolve("mlp.hook_post", 1).module.weight[0].sign()
    found = read(everything, (12,), places=[neurons], interventions=lambda rows: [(neurons, Add(vectors[rows], 1.0))], at=there)
    assert found[0] == 3 and f"variant 3 of a prompt: what interventions put in at {neurons} is not finite" in found[1]
    # nor is what is made of the logits
    dose = [(place, Scale(1.0))]
    assert read(lambda found, base: 1 / (found - found), interventions=lambda rows: dose) == (None, "a prompt as it is: what is measured is not finite")
    apart = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
    measured = read(
        lambda found, base: 1 / ((found - base).abs()[:, 0, :1] < 0.01), interventions=lambda rows: [(place, Add(100 * torch.ones(32), apart[rows]))]
    )
    assert measured == (4, "variant 4 of a prompt: what is measured is not finite")
    assert left_in(tiny_llama) == before


def together(calls):
    """What calls in threads of their own, begun at once, return."""
    ready = Barrier(len(calls))

    def call(one):
        ready.wait(20)
        return one()

    with ThreadPoolExecutor(len(calls)) as threads:
        return [each.result(60) for each in [threads.submit(call, one) for one in calls]]


def test_threads_read_side_by_side(tiny_llama):
    """At places of their own, and at the same ones held around them, with other passes of the model beside them."""
    before = left_in(tiny_llama)
    vectors = torch.randn(VARIANTS, 32, generator=torch.Generator().manual_seed(0))
    places = [At("resid_post", layer=1), At("ln2.hook_normalized", layer=2), At("resid_mid", layer=0)]

    def one(place, touched):
        return read_variants(tiny_llama, IDS, touched, [place], VARIANTS, lambda rows: [(place, Add(vectors[rows], 1.0))], Read((13,), everything), budget=10)

    calls = [(place, touched) for place in places for touched in (LATE, EARLY)]
    expected = [one(*call) for call in calls]
    plain = torch.cat([expected[0][0][None]] * 40)

    @torch.no_grad()
    def others():
        return torch.cat([tiny_llama.hf(input_ids=torch.tensor([IDS])).logits[:, 13].double() for _ in range(40)])

    def repeated(call):
        return [one(*call) for _ in range(8)]

    *found, passed = together([*[lambda call=call: repeated(call) for call in calls], others])
    for times, (base, variants) in zip(found, expected, strict=True):
        assert all(torch.equal(each[0], base) and torch.equal(each[1], variants) for each in times)
    torch.testing.assert_close(passed, plain, rtol=1e-5, atol=1e-5)
    with holding(tiny_llama, [places[0]]) as session:
        during = left_in(tiny_llama)
        assert during != before
        same = together([lambda: repeated(calls[0])] * 3)
        assert left_in(tiny_llama) == during and session.fork is not None
        assert all(torch.equal(each[1], expected[0][1]) for times in same for each in times)
    assert left_in(tiny_llama) == before


def test_hooks_wait_for_the_passes_of_other_threads(tiny_llama):
    """torch bears no hook that comes or goes while a pass of another thread goes through the modules."""
    here, there, begun, ended = At("resid_post", layer=1), At("resid_mid", layer=2), Event(), Event()

    class Slow:
        width = None

        def __call__(self, acts):
            begun.set()
            time.sleep(0.2)
            ended.set()
            return acts

    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(read_variants, tiny_llama, IDS, LATE, [here], 1, lambda rows: [(here, Slow())], Read((13,), everything))
        assert begun.wait(20)
        with holding(tiny_llama, [there]):
            assert ended.is_set()
        slow.result(20)


@pytest.mark.parametrize(
    ("heard", "reason"),
    [(lambda told: told.pop().mean() if told else 0.0, "logits are off by"), (lambda told: told.pop().mean(), "LlamaForCausalLM can't be passed otherwise")],
)
def test_a_model_that_can_not_be_forked_is_passed_whole(heard, reason, tiny_folder):
    """Its blocks tell each other something beside the residual stream."""
    model = load(str(tiny_folder), device="cpu", progress=False)
    first, last = (model.hook_points.decoder.blocks[layer].module for layer in (0, LAYERS - 1))
    told = []
    first.mlp.register_forward_hook(lambda module, args, output: told.append(output))
    last.register_forward_hook(lambda module, args, output: output + heard(told))
    place = At("resid_post", layer=2)
    vectors = torch.randn(VARIANTS, 32, generator=torch.Generator().manual_seed(0))
    ours = read_variants(model, IDS, LATE, [place], VARIANTS, lambda rows: [(place, Add(vectors[rows], 1.0))], Read((13,), everything))
    base, found = whole(model, LATE, [place], lambda rows: Add(vectors[rows], 1.0), (13,))
    assert off(ours[0], base) < WITHIN and off(ours[1], found) < WITHIN
    assert how_passed(model, place).startswith(f"whole passes: {reason}")


def test_how_variants_are_passed_is_told(tiny_llama, tmp_path):
    after = "and so are the tokens before the first that is touched or read, where they are 8 or more"
    assert how_passed(tiny_llama, At("resid_post", layer=1)) == f"blocks below (0-1) are passed once for each prompt, {after}"
    assert how_passed(tiny_llama, At("embed")) == f"blocks below are passed once for each prompt (there are none), {after}"
    windowed = load(str(save_tiny(tmp_path, "gemma3")), device="cpu", progress=False)
    assert how_passed(windowed, At("attn_out", layer=1)).endswith(f"{after} in prompts of at most 8, as far as local attention reaches")
