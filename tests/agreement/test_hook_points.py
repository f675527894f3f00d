"""What a tap hears, from a padded batch, against TransformerLens's bridge on each prompt alone: every hook point, every layer, worst token."""

from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from mi_audit.model.load import load
from mi_audit.model.loaded import LoadedModel
from tests.agreement.bridge import TOLERANCE, activations, bridge_of, worst
from tests.agreement.tiny_models import save_tiny

LENGTHS = (23, 11, 5)
ALL = {"embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn.hook_z", "ln2.hook_normalized", "mlp.hook_in", "mlp.hook_post"}
NO_SECOND_NORM = {"ln2.hook_normalized"}
ABSENT = {
    "gpt_neox": {"resid_mid"},
    "phi": {"resid_mid"} | NO_SECOND_NORM,
    "falcon": {"resid_mid"} | NO_SECOND_NORM,
    "olmo2": NO_SECOND_NORM,
    "mixtral": {"mlp.hook_post"},
}
ARCHITECTURES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "mixtral", "phi", "falcon")


def worst_differences(model: LoadedModel, bridge: TransformerBridge) -> dict[str, float]:
    """Hook-point name → largest relative difference of any token at any layer."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, model.identity.vocabulary, (length,), generator=generator) for length in LENGTHS]
    padded_BL = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    mask_BL = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ours: dict[tuple[str, int | None], torch.Tensor] = {}
    handles = [tap.listen(lambda acts, tap=tap: ours.__setitem__((tap.name, tap.layer), acts.clone())) for tap in model.hook_points.taps]
    with torch.no_grad():
        model.base(input_ids=padded_BL, attention_mask=mask_BL.long(), use_cache=False)
    for handle in handles:
        handle.remove()
    largest: dict[str, float] = {}
    for row, prompt in enumerate(prompts):
        theirs = activations(bridge, prompt.tolist(), list(ours))
        for (name, layer), acts in ours.items():
            largest[name] = max(largest.get(name, 0.0), worst(acts[row, : len(prompt)], theirs[name, layer]))
    return largest


def assert_agreement(differences: dict[str, float], expected: set[str]) -> None:
    assert set(differences) == expected
    assert {name: value for name, value in differences.items() if not value <= TOLERANCE} == {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_models(architecture: str, tmp_path: Path) -> None:
    model = load(str(save_tiny(tmp_path, architecture)), device="cpu", progress=False)
    assert model.self_check.passed
    assert_agreement(worst_differences(model, bridge_of(model)), ALL - ABSENT.get(architecture, set()))


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["default", "gemma"])
def test_shipped_models(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue("default_model" if name == "default" else "gemma")
    bridge = request.getfixturevalue(f"{name}_bridge")
    assert model.self_check.passed
    assert_agreement(worst_differences(model, bridge), ALL)
