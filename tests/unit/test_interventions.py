"""What interventions refuse, and that nothing of them is left in a model."""

import threading

import pytest
import torch

from mi_audit.engine.batches import Batch
from mi_audit.engine.intervening import Intervening, Step
from mi_audit.engine.interventions import Ablate, Add, ProjectOut, Replace, Scale
from mi_audit.engine.layout import Layout
from mi_audit.engine.listening import Listening
from mi_audit.errors import DetectorError, HookPointError, NotFiniteError
from mi_audit.model.load import load
from mi_audit.plan.places import At
from mi_audit.sae_sources import sae
from mi_audit.saes.clamping import ClampLatent
from tests.unit.saes import save_sae

IDS = torch.tensor([[1, 90, 17, 60, 33]])
EVERY = torch.ones(1, 5, dtype=torch.bool)
NAN = torch.tensor([1.0, float("nan")])
HOOK = {"hook_name": "blocks.1.hook_resid_post"}


def hooks_in(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Add(NAN, 1.0), "what is added holds a number that is not finite"),
        (lambda: Add(torch.ones(2), float("inf")), "strength holds a number that is not finite"),
        (lambda: Add(torch.ones(2, 2, 2), 1.0), "one vector, or one for each row"),
        (lambda: Add(torch.zeros(2), 1.0, "norm"), "length 0"),
        (lambda: Add(torch.tensor([[1.0, 0], [0, 0]]), 1.0, 0.5), "length 0"),
        (lambda: Add(torch.ones(2), 1.0, -1.0), "the unit -1.0"),
        (lambda: Add(torch.ones(2), 1.0, "norms"), "the unit 'norms'"),
        (lambda: Scale(NAN), "the factor holds"),
        (lambda: Ablate(NAN), "what is put in holds"),
        (lambda: Replace(torch.ones(2, 2)), "neither"),
        (lambda: ProjectOut(torch.tensor([[1.0, 0, 0], [0, 0, 0]])), "direction 1 has length 0"),
        (lambda: ProjectOut(torch.tensor([[1.0, 0, 0], [0, 1, 0], [3, -2, 0]])), "direction 2 is a combination"),
        (lambda: ProjectOut(torch.eye(3)[:, :2]), "direction 2 has length 0"),
        (lambda: ProjectOut(torch.tensor([[1.0, 2], [2, 1], [1, 1]])), "direction 2 is a combination"),
        (lambda: ProjectOut(torch.tensor([[1.0, 2, 3], [1, 2, 3 + 1e-6]])), "direction 1 is a combination"),
        (lambda: ProjectOut(torch.tensor([[[1.0, 2]], [[0, 0]]])), "direction 0 of row 1 has length 0"),
        (lambda: ProjectOut(torch.tensor([[[1.0, 2], [2, 1]], [[1, 2], [-2, -4]]])), "direction 1 of row 1 is a combination"),
        (lambda: ProjectOut(torch.ones(3)), "rows of a matrix"),
        (lambda: ProjectOut(torch.ones(1, 3), NAN), "share that is taken out"),
    ],
)
def test_what_can_not_be_an_intervention_is_refused(make, message):
    with pytest.raises(DetectorError, match=message):
        make()


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        (Add(torch.ones(1), 1.0), "made for 1 numbers per token, and 3 stand there"),
        (Add(torch.ones(3), torch.ones(3)), "strengths of shape .3,. for a batch of 2 rows"),
        (Add(torch.ones(3, 3), 1.0), "vectors for 3 rows in a batch of 2"),
        (Add(torch.ones(1, 3), 1.0), "vectors for 1 rows in a batch of 2"),
        (ProjectOut(torch.ones(3, 1, 3)), "directions for 3 rows in a batch of 2"),
        (ProjectOut(torch.ones(1, 3), torch.ones(3)), "strengths of shape .3,. for a batch of 2 rows"),
        (Scale(torch.ones(2, 1)), "for a batch of 2 rows"),
        (Ablate(torch.ones(4)), "made for 4 numbers"),
        (Replace(torch.ones(2, 1, 3)), r"\(2, 1, 3\) can't take the place of those of shape \(2, 5, 3\)"),
        (ProjectOut(torch.ones(1, 1)), "made for 1 numbers"),
    ],
)
def test_nothing_is_stretched_to_fit(intervention, message):
    with pytest.raises(HookPointError, match=message):
        intervention(torch.ones(2, 5, 3))


def test_what_can_not_be_clamped_is_refused(tmp_path):
    spec = sae(save_sae(tmp_path / "plain", 8, 20, metadata=HOOK))
    transcoder = sae(save_sae(tmp_path / "over", 8, 20, "transcoder", metadata=HOOK | {"hook_name_out": "blocks.1.hook_mlp_out"}))
    for given, message in (
        ((transcoder, (0,), torch.ones(1)), "at mlp_out at layer 1 instead"),
        ((spec, (20,), torch.ones(1)), "no latent 20"),
        ((spec, (-1,), torch.ones(1)), "no latent -1"),
        ((spec, (3, 3), torch.ones(2)), "none twice"),
        ((spec, (), torch.ones(0)), "at least one"),
        ((spec, (3, 4), torch.ones(1)), "for 2 latents"),
        ((spec, (3,), torch.tensor([float("inf")])), "not finite"),
    ):
        with pytest.raises(DetectorError, match=message):
            ClampLatent(*given)
    with pytest.raises(HookPointError, match="made for 8 numbers"):
        ClampLatent(spec, (3,), torch.ones(1))(torch.ones(2, 5, 7))
    with pytest.raises(HookPointError, match="3 rows in a batch of 2"):
        ClampLatent(spec, (3,), torch.ones(3, 1))(torch.ones(2, 5, 8))
    for chosen in (torch.ones(2, 1), torch.ones(2, 2, dtype=torch.bool), torch.ones(1, dtype=torch.bool)):
        with pytest.raises(DetectorError, match="which of 1 latents"):
            ClampLatent(spec, (3,), torch.ones(1), chosen)
    with pytest.raises(HookPointError, match="choices of latents for 3 rows in a batch of 2"):
        ClampLatent(spec, (3,), torch.ones(1), torch.ones(3, 1, dtype=torch.bool))(torch.ones(2, 5, 8))


def test_what_differs_by_row_is_what_each_row_alone_gives(tmp_path):
    draw = torch.Generator().manual_seed(0)
    acts, vectors, directions, share = (torch.randn(*shape, generator=draw) for shape in ((3, 5, 8), (3, 8), (3, 2, 8), (3,)))
    spec = sae(save_sae(tmp_path, 8, 20, metadata=HOOK))
    values, chosen = torch.rand(3, 4, generator=draw), torch.tensor([[True, False, False, True], [False] * 4, [True] * 4])
    latents = (3, 0, 17, 9)
    for unit in ("vector", "norm", 0.7):
        together = Add(vectors, share, unit)(acts)
        torch.testing.assert_close(together, torch.cat([Add(vectors[row], float(share[row]), unit)(acts[row : row + 1]) for row in range(3)]))
    together = ProjectOut(directions, share)(acts)
    for row in range(3):
        taken = acts[row].double() @ torch.linalg.pinv(directions[row].double()) @ directions[row].double()
        torch.testing.assert_close(together[row].double(), acts[row].double() - float(share[row]) * taken, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ProjectOut(directions[:, :1])(acts)[2:], ProjectOut(directions[2, :1])(acts[2:]))
    together = ClampLatent(spec, latents, values, chosen)(acts)
    assert torch.equal(together[1], acts[1])
    for row in (0, 2):
        own = [number for number in range(4) if chosen[row, number]]
        alone = ClampLatent(spec, tuple(latents[number] for number in own), values[row, own])(acts[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)
        assert not torch.allclose(together[row], acts[row], atol=1e-2)


@torch.no_grad()
def test_nothing_is_left_and_no_other_pass_is_touched(tiny_llama):
    before, plain = hooks_in(tiny_llama), tiny_llama.hf(input_ids=IDS).logits
    places = [At("resid_mid", layer=0), At("ln2.hook_normalized", layer=1), At("embed"), At("attn_out", layer=2)]
    elsewhere = []

    class Broken:
        width = None

        def __call__(self, acts):
            raise KeyError("broken")

    with Intervening(tiny_llama, places) as intervening:
        assert hooks_in(tiny_llama) > before
        assert torch.equal(tiny_llama.hf(input_ids=IDS).logits, plain)
        with intervening.applying([Step(at, EVERY, Scale(2.0)) for at in places]):
            changed = tiny_llama.hf(input_ids=IDS).logits
            thread = threading.Thread(target=lambda: elsewhere.append(tiny_llama.hf(input_ids=IDS).logits))
            thread.start()
            thread.join()
        assert torch.equal(elsewhere[0], plain) and not torch.allclose(changed, plain, rtol=1e-2)
    steps = [Step(places[0], EVERY, Scale(2.0)), Step(places[1], EVERY, Broken())]
    with pytest.raises(KeyError, match="broken"), Intervening(tiny_llama, places) as intervening, intervening.applying(steps):
        tiny_llama.hf(input_ids=IDS)
    assert hooks_in(tiny_llama) == before
    assert torch.equal(tiny_llama.hf(input_ids=IDS).logits, plain)
    with pytest.raises(HookPointError, match="layer from 0"), Intervening(tiny_llama, [*places, At("resid_post", layer=99)]):
        pass
    assert hooks_in(tiny_llama) == before


def test_what_can_not_be_applied_is_an_error(tiny_llama):
    at, other = At("resid_post", layer=1), At("resid_post", layer=2)

    def applied(*steps, ids=IDS):
        with Intervening(tiny_llama, [at]) as intervening, intervening.applying(steps):
            tiny_llama.hf(input_ids=ids)

    with pytest.raises(ValueError, match="none of the places"):
        applied(Step(other, EVERY, Ablate()))
    with pytest.raises(HookPointError, match="resid_post at layer 1 has 32 numbers per token, and Add is made for 31"):
        applied(Step(at, EVERY, Add(torch.ones(31), 1.0)))
    with pytest.raises(HookPointError, match=r"a mask of shape \(1, 5\) does not fit the batch \(1, 4\)"):
        applied(Step(at, EVERY, Ablate()), ids=IDS[:, :4])
    strengths = torch.tensor([1.0, 3e38, 3e38])
    with pytest.raises(NotFiniteError, match="resid_post at layer 1 is not finite") as caught:
        applied(*[Step(at, EVERY.expand(3, -1), Scale(strengths))] * 2, ids=IDS.expand(3, -1))
    assert caught.value.variant == 1
    with Intervening(tiny_llama, [at]) as intervening:
        with pytest.raises(HookPointError, match="no forward pass came by resid_post at layer 1"), intervening.applying([Step(at, EVERY, Ablate())]):
            pass
        with intervening.applying([]), pytest.raises(ValueError, match="give all of them at once"), intervening.applying([]):
            pass


@pytest.mark.parametrize("point", ["resid_mid", "ln2.hook_normalized", "mlp.hook_in", "resid_post"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_put_in_is_what_is_heard_there(tiny_folder, point, dtype):
    """By those who listen from then on, of a hook point that is written by a detour too."""
    model = load(str(tiny_folder), device="cpu", dtype=dtype, progress=False)
    at, heard, values = At(point, layer=1), {}, torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[False, True, True, False, True]])
    layout = Layout.of(Batch(((0,),), packed=False), [tuple(IDS[0].tolist())], model.device)
    with Intervening(model, [at]) as intervening, Listening(model, [at]) as listening, intervening.applying([Step(at, mask, Replace(values))]):
        listening.pass_through({at}, layout.arguments(model, None), lambda at, acts: heard.setdefault(at, acts.clone()))
    assert torch.equal(heard[at][mask], values.to(model.dtype)[mask]) and not torch.allclose(heard[at][~mask].float(), values[~mask])


def test_a_mask_is_of_the_prompts_tokens():
    layout = Layout.of(Batch(((1, 0), (2,)), packed=True), [(1, 2), (3, 4, 5), (6,)], torch.device("cpu"))
    assert layout.mask([[0, 2], [1], [0]]).tolist() == [[True, False, True, False, True], [True, False, False, False, False]]
    for positions in ([[3], [0], [0]], [[-1], [0], [0]]):
        with pytest.raises(ValueError, match="stands in no row"):
            layout.mask(positions)
    shared = Layout.of(Batch(((0,), (1,)), True, (7, 8)), [(7, 8, 1), (7, 8, 2)], torch.device("cpu"))
    assert shared.mask([[2], []]).tolist() == [[True], [False]]
    with pytest.raises(ValueError, match="the first 2 of them shared"):
        shared.mask([[1], []])
