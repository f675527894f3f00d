"""Interventions on the models that are shipped and known, in whole passes and in forked ones, against TransformerLens's bridge with hooks written by hand."""

import pytest
import torch

from mi_audit.engine.batches import Batch
from mi_audit.engine.intervening import Intervening, Step
from mi_audit.engine.interventions import Ablate, Add, ProjectOut
from mi_audit.engine.layout import Layout
from mi_audit.engine.variants import Read, how_passed, read_variants
from mi_audit.plan.places import At
from mi_audit.sae_sources import sae
from mi_audit.saes.clamping import ClampLatent
from tests.agreement.bridge import TOLERANCE
from tests.agreement.test_hook_points import ALL
from tests.agreement.test_interventions import hooks_that_put

PROMPTS = (("The capital of France is a city on the river", (8, -1)), ("Two and two are", (2, -1)))
"""Texts, and the tokens that are touched: those before the first of them are passed once for the first prompt alone."""
LATENTS, VALUES = (3, 500, 777), (30.0, 0.0, 12.0)


class Rows:
    """A different intervention for each row."""

    def __init__(self, parts):
        self._parts, self.width = parts, parts[0].width

    def __call__(self, acts):
        return torch.cat([part(acts[row : row + 1]) for row, part in enumerate(self._parts)])


def pairs(width, clamp):
    """(an intervention, what it makes by its definition of activations [L, width] float64)."""
    draw = torch.Generator().manual_seed(width)
    vector, mean, directions = (torch.randn(*shape, generator=draw) for shape in ((width,), (width,), (20, width)))
    v, m, d = (each.double() for each in (vector, mean, directions))
    made = [
        (Add(vector, -0.7, "norm"), lambda h: h - 0.7 * h.norm(dim=1)[:, None] * v / v.norm()),
        (Add(vector, 0.8), lambda h: h + 0.8 * v),
        (ProjectOut(directions, 1.5), lambda h: h - 1.5 * h @ torch.linalg.pinv(d) @ d),
        (Ablate(), lambda h: 0 * h),
        (Ablate(mean), lambda h: m.expand_as(h)),
    ]
    return made if clamp is None else [*made, clamp]


def clamped(folder):
    """Latents of an SAE clamped by mi-audit and by sae-lens."""
    from sae_lens import SAE

    lens = SAE.load_from_disk(folder, dtype="float64")

    @torch.no_grad()
    def definition(h):
        latents = lens.encode(h)
        changed = latents.index_copy(-1, torch.tensor(LATENTS), torch.tensor(VALUES).double().expand(len(h), -1))
        return h + lens.decode(changed) - lens.decode(latents)

    return ClampLatent(sae(folder), LATENTS, torch.tensor(VALUES)), definition


def worst_of_prompt(model, bridge, ids, touched, places, made):
    """Of whole passes and of forked ones, the largest relative difference of a row's final logits from the bridge's, and the least that a row is moved."""
    number, last = len(made), len(ids) - 1

    def changed(acts):
        flat = acts.flatten(start_dim=2).double()
        for row, (_, definition) in enumerate(made):
            flat[row, touched] = definition(flat[row, touched])
        return flat.reshape(acts.shape)

    with torch.inference_mode():
        hooks = [hook for at in places for hook in hooks_that_put(at.point, at.layer, changed)]
        hooks.append(("unembed.hook_in", lambda acts, hook: acts[:, last:]))
        theirs = bridge.run_with_hooks(torch.tensor([ids] * number), fwd_hooks=hooks)[:, 0]
        layout = Layout.of(Batch(tuple((row,) for row in range(number)), packed=False), [ids] * number, model.device)
        mask, rows = layout.mask([touched] * number), Rows([intervention for intervention, _ in made])
        with Intervening(model, places) as intervening, intervening.applying([Step(at, mask, rows) for at in places]):
            whole = model.hf(**layout.arguments(model, None), logits_to_keep=1).logits[:, 0]
    base, forked = read_variants(model, ids, touched, places, number, lambda _: [(at, rows) for at in places], Read((last,), lambda found, base: found[:, 0]))
    length = theirs.norm(dim=1).clamp(min=1e-9)  # none is left where the last residual stream is ablated by zeros
    differences = [float(((ours - theirs).norm(dim=1) / length).max()) for ours in (whole, forked)]
    return *differences, float(((theirs - base).norm(dim=1) / base.norm()).min())


def worst_of(model, bridge, points, clamp):
    """(hook point, layers) → the numbers of `worst_of_prompt`, worst prompt."""
    middle, found = model.n_layers // 2, {}
    for point in points:
        for layers in ((None,),) if point == "embed" else ((middle,), (0, middle, model.n_layers - 1)):
            places = [At(point, layer=layer) for layer in layers]
            made = pairs(model.hook_points.resolve(point, layers[0]).width, clamp if point == "resid_post" else None)
            prompts = []
            for text, touched in PROMPTS:
                ids = tuple(model.tokenizer(text)["input_ids"])
                prompts.append(worst_of_prompt(model, bridge, ids, [position % len(ids) for position in touched], places, made))
            whole, forked, moved = zip(*prompts, strict=True)
            found[point, layers] = max(whole), max(forked), min(moved)
    return found


@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale/hook_normalized")
@pytest.mark.parametrize("name", ["default", "gemma"])
def test_interventions_do_what_they_are_defined_as(name, request, tmp_path):
    pytest.importorskip("sae_lens", reason="sae-lens is in the run extra")
    from sae_lens import SAE

    model, bridge = request.getfixturevalue(f"{name}_model" if name == "default" else name), request.getfixturevalue(f"{name}_bridge")
    folder = sae("smollm2-135m-instruct-resid_post-15").folder
    if name == "gemma":
        options = {"architecture": "jumprelu", "d_in": model.d_model, "d_sae": 1000, "metadata": {"hook_name": "blocks.9.hook_resid_post"}}
        made, draw = SAE.from_dict({**options, "dtype": "float32", "device": "cpu"}), torch.Generator().manual_seed(0)
        for each in made.parameters():
            each.data = torch.randn(each.shape, generator=draw).abs() if each is made.threshold else torch.randn(each.shape, generator=draw)
        folder = tmp_path
        made.save_model(folder)
    assert set(model.hook_points.names) == ALL and how_passed(model, At("resid_post", layer=9)).startswith("blocks below (0-9)")
    found = worst_of(model, bridge, model.hook_points.names, clamped(folder))
    assert {place: numbers for place, numbers in found.items() if not max(numbers[:2]) <= TOLERANCE} == {}
    assert {place: numbers for place, numbers in found.items() if not numbers[2] > 20 * TOLERANCE} == {}
