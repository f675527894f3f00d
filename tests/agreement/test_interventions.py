"""Interventions on batches against TransformerLens's bridge on each prompt alone, whose hooks do by hand, in float64, what each intervention is defined as."""

from pathlib import Path

import pytest
import torch

from mi_audit.engine.batches import Batch
from mi_audit.engine.intervening import Intervening, Step
from mi_audit.engine.interventions import Ablate, Add, ProjectOut, Replace, Scale
from mi_audit.engine.layout import Layout
from mi_audit.errors import DetectorError
from mi_audit.model.load import load
from mi_audit.plan.places import At
from mi_audit.sae_sources import sae
from mi_audit.saes.clamping import ClampLatent
from tests.agreement.bridge import TOLERANCE, bridge_of, name_of
from tests.agreement.test_hook_points import ABSENT, ALL
from tests.agreement.test_sae_lens import D_IN, KINDS, acts, saved
from tests.agreement.tiny_models import LAYERS, save_tiny

PROMPTS = ((1, 90, 17, 60, 33, 8, 101, 45, 72, 20, 64), (1, 55, 230, 12, 81, 9))
TOUCHED = ((2, 3, 7, 10), (2, 5))
FIRST = 2
STRENGTHS = torch.tensor([-1.5, -0.7])  # a norm that follows takes positive factors out again


def cases(width):
    """Name → (an intervention, what it makes by its definition of the activations [L, width] float64 of a row)."""
    draw = torch.Generator().manual_seed(width)
    vector, mean, directions, others = (torch.randn(*shape, generator=draw) for shape in ((width,), (width,), (3, width), (2, len(PROMPTS[0]), width)))
    v, m, d, o, a = (each.double() for each in (vector, mean, directions, others, STRENGTHS))
    return {
        "add": (Add(vector, STRENGTHS), lambda h, row: h + a[row] * v),
        "add, of the norm": (Add(vector, STRENGTHS, "norm"), lambda h, row: h + a[row] * h.norm(dim=1)[:, None] * v / v.norm()),
        "add, of a standard deviation": (Add(vector, STRENGTHS, 0.8), lambda h, row: h + a[row] * 0.8 * v / v.norm()),
        "scale": (Scale(STRENGTHS), lambda h, row: h * a[row]),
        "ablate": (Ablate(), lambda h, row: 0 * h),
        "ablate by the mean": (Ablate(mean), lambda h, row: m.expand_as(h)),
        "ablate by another's": (Ablate(others), lambda h, row: o[row, : len(h)]),
        "replace": (Replace(3 * others), lambda h, row: 3 * o[row, : len(h)]),
        "project out": (ProjectOut(directions), lambda h, row: h - h @ torch.linalg.pinv(d) @ d),
    }


def laid_out(model, prompts=PROMPTS):
    return Layout.of(Batch(tuple((number,) for number in range(len(prompts))), packed=False), prompts, model.device)


@torch.no_grad()
def logits_of(model, layout, steps):
    """[R, L, vocabulary], with the interventions."""
    with Intervening(model, {step.at for step in steps}) as intervening, intervening.applying(steps):
        return model.hf(**layout.arguments(model, None)).logits


def by_hand(point, layer, definition, row):
    """Hooks of the bridge that put what `definition` makes of a prompt's touched tokens at a hook point."""

    def changed(acts):
        flat = acts[0].flatten(start_dim=1).double()
        touched = list(TOUCHED[row])
        flat[touched] = definition(flat, row)[touched]
        return flat.reshape(acts.shape)

    return hooks_that_put(point, layer, changed)


def hooks_that_put(point, layer, changed):
    """Hooks of the bridge that put what `changed` makes of an activation, in float64, at a hook point."""
    if point != "resid_mid":
        return [(name_of(point, layer), lambda acts, hook: changed(acts).to(acts.dtype))]
    before = []
    # the bridge's own hook there reaches the norm alone: the sum of the stream and of what attention adds to it reaches both
    return [
        (name_of("resid_pre", layer), lambda acts, hook: before.append(acts.double())),
        (name_of("attn_out", layer), lambda acts, hook: (changed(before[0] + acts) - before[0]).to(acts.dtype)),
    ]


@torch.inference_mode()
def theirs(bridge, row, hooks):
    return bridge.run_with_hooks(torch.tensor([PROMPTS[row]]), fwd_hooks=hooks)[0]


def difference(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale/hook_normalized")
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "gpt2", "olmo2", "qwen3", "gpt_neox"])
def test_interventions_do_what_they_are_defined_as(architecture: str, tmp_path: Path) -> None:
    model = load(str(save_tiny(tmp_path, architecture)), device="cpu", progress=False)
    bridge, layout = bridge_of(model), laid_out(model)
    mask, plain = layout.mask(TOUCHED), logits_of(model, layout, [])
    assert set(model.hook_points.names) == ALL - ABSENT.get(architecture, set())
    wrong = {}
    for point in model.hook_points.names:
        for layers in ((None,),) if point == "embed" else ((1,), (0, 2, LAYERS - 1)):
            places = [At(point, layer=layer) for layer in layers]
            for name, (intervention, definition) in cases(model.hook_points.resolve(point, layers[0]).width).items():
                ours = logits_of(model, layout, [Step(at, mask, intervention) for at in places])
                assert torch.equal(ours[:, :FIRST], plain[:, :FIRST]), (point, layers, name)
                for row, ids in enumerate(PROMPTS):
                    expected = theirs(bridge, row, [hook for layer in layers for hook in by_hand(point, layer, definition, row)])
                    assert difference(expected, plain[row, : len(ids)]) > 20 * TOLERANCE, (point, layers, name)
                    if not difference(ours[row, : len(ids)], expected) <= TOLERANCE:
                        wrong[point, layers, name, row] = difference(ours[row, : len(ids)], expected)
    assert not wrong


@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale/hook_normalized")
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_several_at_one_layer_are_applied_as_a_pass_comes_by_and_in_their_order(architecture: str, tmp_path: Path) -> None:
    model = load(str(save_tiny(tmp_path, architecture)), device="cpu", progress=False)
    bridge, layout = bridge_of(model), laid_out(model)
    mask = layout.mask(TOUCHED)
    points = [point for point in model.hook_points.names if point != "embed"]
    steps, given = [], {point: cases(model.hook_points.resolve(point, 1).width) for point in points}
    hooks = [[], []]
    for point in points:
        for name in ("scale", "add"):
            intervention, definition = given[point][name]
            steps.append(Step(At(point, layer=1), mask, intervention))
            for row in range(2):
                hooks[row] += by_hand(point, 1, definition, row)
    # what stands at different places is met in the model's order, whatever order it is given in
    ours = logits_of(model, layout, sorted(steps, key=lambda step: step.at.point))
    for row, ids in enumerate(PROMPTS):
        assert difference(ours[row, : len(ids)], theirs(bridge, row, hooks[row])) <= TOLERANCE


def test_rows_of_a_batch_equal_passes_of_their_own(tiny_llama):
    strengths, ids = torch.tensor([-2.0, 0.0, 0.5, 3.0]), PROMPTS[0]
    vector = torch.randn(tiny_llama.d_model, generator=torch.Generator().manual_seed(0))
    batch, alone = laid_out(tiny_llama, [ids] * 4), laid_out(tiny_llama, [ids])
    places = [At("resid_mid", layer=0), At("ln2.hook_normalized", layer=1), At("resid_post", layer=2)]
    for unit in ("vector", "norm", 0.7):
        together = logits_of(tiny_llama, batch, [Step(at, batch.mask([TOUCHED[0]] * 4), Add(vector, strengths, unit)) for at in places])
        for row, strength in enumerate(strengths.tolist()):
            steps = [Step(at, alone.mask([TOUCHED[0]]), Add(vector, strength, unit)) for at in places]
            assert difference(together[row], logits_of(tiny_llama, alone, steps)[0]) < 5e-6
        assert difference(together[3], together[1]) > 1e-2 and difference(together[1], logits_of(tiny_llama, alone, [])[0]) < 5e-6


def test_packed_rows_give_what_rows_of_their_own_do(tiny_llama):
    assert tiny_llama.packing.longest >= 32
    packed = Layout.of(Batch(((0, 1),), packed=True), PROMPTS, tiny_llama.device)
    vector = torch.randn(tiny_llama.d_model, generator=torch.Generator().manual_seed(0))
    at = At("resid_mid", layer=1)
    together = logits_of(tiny_llama, packed, [Step(at, packed.mask(TOUCHED), Add(vector, 4.0))])[0]
    apart = laid_out(tiny_llama)
    separate = logits_of(tiny_llama, apart, [Step(at, apart.mask(TOUCHED), Add(vector, 4.0))])
    end = len(PROMPTS[0])
    assert difference(together[:end], separate[0]) < 5e-6
    assert difference(together[end : end + len(PROMPTS[1])], separate[1, : len(PROMPTS[1])]) < 5e-6


@pytest.mark.parametrize(
    ("architecture", "options"),
    [(kind, options) for kind, options in KINDS if "transcoder" not in kind],
    ids=[f"{kind}-{'-'.join(options)}" for kind, options in KINDS if "transcoder" not in kind],
)
def test_a_clamped_latent_is_decoded_with_its_error(architecture: str, options: dict[str, object], tmp_path: Path) -> None:
    lens = saved(tmp_path, architecture, {**options, "metadata": {"hook_name": "blocks.1.hook_resid_post"}})
    given = acts().reshape(4, -1, D_IN)
    with torch.no_grad():
        latents = lens.encode(given)
        order = (latents != 0).flatten(end_dim=1).sum(dim=0).argsort()
        chosen = [int(order[-1]), int(order[-7]), int(order[0])]  # two that fire often and one that fires least
        error = given - lens.decode(latents)
        values = torch.randn(4, 3, generator=torch.Generator().manual_seed(3)).abs() * 5
        lens.encode(given)  # decoding uses up what the normalisation took out
        expected = lens.decode(latents.index_copy(-1, torch.tensor(chosen), values[:, None].expand(-1, given.shape[1], -1))) + error
        clamped = ClampLatent(sae(tmp_path), tuple(chosen), values)(given)
        torch.testing.assert_close(clamped, expected, rtol=1e-5, atol=1e-4)
        assert (clamped - given).norm(dim=-1).min() > 0.1
        one = ClampLatent(sae(tmp_path), (chosen[0],), torch.tensor([2.5]))(given)
        lens.encode(given)
        torch.testing.assert_close(one, lens.decode(latents.index_fill(-1, torch.tensor(chosen[:1]), 2.5)) + error, rtol=1e-5, atol=1e-4)


def test_latents_that_depend_on_earlier_tokens_are_not_clamped(tmp_path: Path) -> None:
    saved(tmp_path, "temporal", {"n_heads": 4, "bottleneck_factor": 8, "kval_topk": 12, "metadata": {"hook_name": "blocks.1.hook_resid_post"}})
    with pytest.raises(DetectorError, match="depend on the tokens before it"):
        ClampLatent(sae(tmp_path), (0,), torch.ones(1))
