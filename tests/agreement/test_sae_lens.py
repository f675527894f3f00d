"""Latents and reconstructions equal those of sae-lens, read from files that sae-lens wrote."""

from pathlib import Path

import pytest
import torch

from mi_audit.plan.sae_config import parse
from mi_audit.saes.encoding import Decoder, Encoder
from mi_audit.saes.weights import read_weights

pytest.importorskip("sae_lens", reason="sae-lens is in the run extra")

D_IN, D_SAE, N = 48, 160, 200

KINDS = [
    ("standard", {}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("standard", {"normalize_activations": "layer_norm"}),
    ("standard", {"normalize_activations": "constant_norm_rescale"}),
    ("gated", {}),
    ("gated", {"normalize_activations": "layer_norm"}),
    ("jumprelu", {}),
    ("jumprelu", {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False}),
    ("topk", {"k": 12}),
    ("topk", {"k": 12, "rescale_acts_by_decoder_norm": True}),
    ("topk", {"k": 12, "normalize_activations": "layer_norm"}),
    ("abstopk", {"k": 12}),
    ("transcoder", {"apply_b_dec_to_input": False, "d_out": 40}),
    ("transcoder", {"apply_b_dec_to_input": False, "d_out": 40, "normalize_activations": "layer_norm"}),
    ("skip_transcoder", {"apply_b_dec_to_input": False, "d_out": 40}),
    ("jumprelu_transcoder", {"apply_b_dec_to_input": False, "d_out": 40}),
    ("jumprelu_skip_transcoder", {"apply_b_dec_to_input": False, "d_out": 40}),
    ("matching_pursuit", {"max_iterations": 9}),
    ("matching_pursuit", {"residual_threshold": 5.0, "stop_on_duplicate_support": False, "apply_b_dec_to_input": False}),
    ("matching_pursuit", {"max_iterations": 9, "normalize_activations": "layer_norm"}),
    ("matching_pursuit", {"max_iterations": 9, "normalize_activations": "constant_norm_rescale"}),
]


def acts() -> torch.Tensor:
    return torch.randn(N, D_IN, generator=torch.Generator().manual_seed(1)) * 3 + 0.5


def saved(folder: Path, architecture: str, options: dict[str, object]):
    """An SAE of sae-lens with random weights, some of whose latents fire, and the folder that it wrote."""
    from sae_lens import SAE

    sae = SAE.from_dict({"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "metadata": {}, **options})
    draw = torch.Generator().manual_seed(0)
    for name, parameter in sae.named_parameters():
        scale = 0.3 if name in ("threshold", "r_mag") else 0.2
        parameter.data = torch.randn(parameter.shape, generator=draw) * scale
    if architecture == "matching_pursuit":
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)  # as in training: a pursuit of longer rows does not converge
    sae.threshold.data.abs_() if "threshold" in dict(sae.named_parameters()) else None
    sae.save_model(folder)
    return sae


@pytest.mark.parametrize(("architecture", "options"), KINDS, ids=[f"{kind}-{'-'.join(options)}" for kind, options in KINDS])
def test_latents_and_reconstructions_equal_those_of_sae_lens(architecture: str, options: dict[str, object], tmp_path: Path) -> None:
    theirs = saved(tmp_path, architecture, options)
    config = parse((tmp_path / "cfg.json").read_bytes(), "cfg.json")
    weights = read_weights(tmp_path / "sae_weights.safetensors", config)
    given = acts()
    with torch.no_grad():
        expected = theirs.encode(given)
        decoded = theirs(given)
    ours = Encoder.of(config, weights)(given)
    assert 0.02 < (expected != 0).float().mean() < 0.9
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    chosen = [3, 159, 0, 77]
    torch.testing.assert_close(Encoder.of(config, weights, chosen)(given), expected[:, chosen], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(Decoder(config, weights)(ours, given), decoded, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"kval_topk": 12},
        {"kval_topk": 12, "tied_weights": False, "n_attn_layers": 2},
        {"sae_diff_type": "relu", "apply_b_dec_to_input": False},
        {"kval_topk": 12, "normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 0.3},
        {"kval_topk": 12, "normalize_activations": "layer_norm"},
    ],
    ids="-".join,
)
def test_latents_that_depend_on_earlier_tokens_equal_those_of_sae_lens(options: dict[str, object], tmp_path: Path) -> None:
    theirs = saved(tmp_path, "temporal", {"n_heads": 4, "bottleneck_factor": 8, **options})
    config = parse((tmp_path / "cfg.json").read_bytes(), "cfg.json")
    weights = read_weights(tmp_path / "sae_weights.safetensors", config)
    encode, decode, prompts = Encoder.of(config, weights), Decoder(config, weights), acts().reshape(4, N // 4, D_IN)
    with torch.no_grad():
        expected, decoded = theirs.encode(prompts), theirs(prompts)
    assert 0.02 < (expected != 0).float().mean() < 0.9
    torch.testing.assert_close(encode(prompts), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encode(prompts[2]), expected[2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode(expected, prompts), decoded, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(decode(expected[2], prompts[2]), decoded[2], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
def test_latents_of_folded_norms_equal_those_of_sae_lens(architecture: str, tmp_path: Path) -> None:
    theirs = saved(tmp_path / "whole", architecture, {})
    theirs.fold_W_dec_norm()
    if architecture != "jumprelu":  # whose threshold has no unit to fold
        theirs.fold_activation_norm_scaling_factor(3.0)
    theirs.save_model(tmp_path / "folded")
    config = parse((tmp_path / "folded" / "cfg.json").read_bytes(), "cfg.json")
    with torch.no_grad():
        expected = theirs.encode(acts())
    assert 0.02 < (expected != 0).float().mean() < 0.9
    torch.testing.assert_close(
        Encoder.of(config, read_weights(tmp_path / "folded" / "sae_weights.safetensors", config))(acts()), expected, rtol=1e-5, atol=1e-5
    )


def test_what_an_sae_explains_and_recovers_is_what_sae_lens_measures(tiny_llama, tmp_path: Path) -> None:
    from sae_lens.evals import ExplainedVarianceCalculator, get_recons_loss
    from sae_lens.training.activation_scaler import ActivationScaler

    from mi_audit.engine.encoding import encode_all
    from mi_audit.engine.every_token import every_token
    from mi_audit.sae_sources import sae
    from mi_audit.saes.measuring import reconstruction, recovery
    from tests.agreement.bridge import activations, bridge_of
    from tests.unit.texts import texts

    width, place = tiny_llama.d_model, ("resid_post", 1)
    theirs = saved(tmp_path, "standard", {"d_in": width, "metadata": {"hook_name": "blocks.1.hook_resid_post"}})
    spec, bridge = sae(tmp_path), bridge_of(tiny_llama)
    encoded = list(encode_all(tiny_llama, texts(8), None))
    read = every_token(tiny_llama, encoded, spec.at)
    assert not any(each.sinks.any() for each in read)  # sae-lens leaves none out
    ours = reconstruction(spec, read)
    groups = [str(number) for number in range(8)]
    expected, fired = ExplainedVarianceCalculator(), []
    for each in encoded:
        acts = activations(bridge, each.ids, [place])[place]
        with torch.no_grad():
            expected.add_batch(theirs(acts), acts)
            fired.append((theirs.encode(acts) != 0).sum(dim=-1).double())
    assert ours.explained_variance(groups, 0.025).value == pytest.approx(expected.compute(), rel=1e-4)
    assert ours.l0(groups, 0.025).value == pytest.approx(float(torch.cat(fired).mean()), rel=1e-4)

    ids = [each.ids for each in encoded]
    cost = recovery(tiny_llama, spec, ids, ours.sums.sum(0) / ours.tokens.sum())
    found = [get_recons_loss(theirs, bridge, ActivationScaler(), torch.tensor([each]), compute_kl=True, compute_ce_loss=True) for each in ids]
    sums = {name: sum(float(part[name].double().sum()) for part in found) for name in found[0]}
    assert cost.plain.sum() == pytest.approx(sums["ce_loss_without_sae"], rel=1e-4)
    assert cost.sae.sum() == pytest.approx(sums["ce_loss_with_sae"], rel=1e-4)
    assert cost.zero.sum() == pytest.approx(sums["ce_loss_with_ablation"], rel=1e-4)
    score = (sums["ce_loss_with_ablation"] - sums["ce_loss_with_sae"]) / (sums["ce_loss_with_ablation"] - sums["ce_loss_without_sae"])
    assert cost.recovered(groups, 0.025, zero=True).value == pytest.approx(score, rel=1e-3)
    last = sum(float(part["kl_div_with_sae"][:, :-1].double().sum()) for part in found)  # sae-lens counts the last position too, after which nothing stands
    assert cost.kl.sum() == pytest.approx(last, rel=1e-3)


@pytest.mark.parametrize("read", ["ln2.hook_normalized", "mlp.hook_in"])
def test_what_a_transcoder_explains_and_recovers_is_what_sae_lens_s_class_does_on_a_bridge(read: str, tiny_llama, tmp_path: Path) -> None:
    from mi_audit.engine.encoding import encode_all
    from mi_audit.engine.streaming import streamed_together
    from mi_audit.sae_sources import sae
    from mi_audit.saes.measuring import reconstruction, recovery
    from tests.agreement.bridge import bridge_of
    from tests.unit.texts import texts

    width, into, out = tiny_llama.d_model, f"blocks.1.{read}", "blocks.1.hook_mlp_out"
    metadata = {"hook_name": into, "hook_name_out": out}
    theirs = saved(tmp_path, "jumprelu_skip_transcoder", {"d_in": width, "d_out": width, "apply_b_dec_to_input": False, "metadata": metadata})
    spec, bridge = sae(tmp_path), bridge_of(tiny_llama)
    ids = [each.ids for each in encode_all(tiny_llama, texts(8), None)]
    given, wanted = zip(*streamed_together(tiny_llama, ids, (spec.at, spec.reconstructs)), strict=True)
    assert not any(each.sinks.any() for each in (*given, *wanted))
    groups = [str(number) for number in range(8)]
    ours = reconstruction(spec, given, wanted)
    cost = recovery(tiny_llama, spec, ids, ours.sums.sum(0) / ours.tokens.sum())

    acts = [bridge.run_with_cache(torch.tensor([each]), names_filter=[into, out])[1] for each in ids]
    with torch.no_grad():
        made = torch.cat([theirs(each[into])[0] for each in acts]).double()
        fired = torch.cat([(theirs.encode(each[into])[0] != 0).sum(dim=-1) for each in acts]).double()
    goal = torch.cat([each[out][0] for each in acts]).double()
    mean = goal.mean(dim=0)
    explained = 1 - ((goal - made) ** 2).sum() / ((goal - mean) ** 2).sum()
    assert ours.explained_variance(groups, 0.025).value == pytest.approx(float(explained), rel=1e-4)
    assert ours.l0(groups, 0.025).value == pytest.approx(float(fired.mean()), rel=1e-4)

    def losses(replace) -> tuple[float, torch.Tensor]:
        """The summed loss of all next tokens, and their log-probabilities, with what `replace` makes of the transcoder's input in the place of its output."""
        total, logps = 0.0, []
        for each in ids:
            kept = {}
            hooks = [(into, lambda x, hook, kept=kept: kept.update(x=x)), (out, lambda y, hook, kept=kept: replace(kept["x"], y))]
            with torch.no_grad():
                logp = bridge.run_with_hooks(torch.tensor([each]), fwd_hooks=hooks).log_softmax(dim=-1)[0, :-1].double()
            total -= float(logp.gather(-1, torch.tensor(each[1:])[:, None]).sum())
            logps.append(logp)
        return total, torch.cat(logps)

    (plain, p), (spliced, q) = losses(lambda x, y: y), losses(lambda x, y: theirs(x))
    by_mean, by_zeros = losses(lambda x, y: mean.float().expand_as(y))[0], losses(lambda x, y: torch.zeros_like(y))[0]
    assert abs(spliced - plain) > 1 and abs(by_mean - plain) > 0.1
    for sums, expected in ((cost.plain, plain), (cost.sae, spliced), (cost.mean, by_mean), (cost.zero, by_zeros)):
        assert sums.sum() == pytest.approx(expected, rel=1e-5)
    assert cost.kl.sum() == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3)
    assert cost.recovered(groups, 0.025).value == pytest.approx((by_mean - spliced) / (by_mean - plain), rel=1e-3)
