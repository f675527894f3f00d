"""SAEs that sae-lens's own classes encode and decode, because no matrix product does; their weights are those that were read and checked here."""

from typing import Any

from torch import nn

from mi_audit.errors import MissingDependencyError
from mi_audit.plan.sae_config import SaeConfig
from mi_audit.saes.weights import SaeWeights


def class_of(config: SaeConfig, weights: SaeWeights) -> Any:
    """sae-lens's SAE with these weights, where they are, which neither normalises nor reshapes activations: its `encode`, `decode` and call are used.

    Raises:
        MissingDependencyError: sae-lens is not installed.
    """
    try:
        from sae_lens import SAE
    except ImportError as error:
        raise MissingDependencyError(f"an SAE of the architecture {config.architecture!r} needs sae-lens: pip install 'mi-audit[run]'") from error
    told = {"architecture": config.architecture, "d_in": config.d_in, "d_sae": config.d_sae, "apply_b_dec_to_input": config.subtracts_decoder_bias}
    sae = SAE.from_dict({**told, **dict(config.settings), "dtype": "float32", "device": "meta", "metadata": {}})
    assert isinstance(sae, nn.Module)
    encoder = {} if config.is_tied else {"W_enc": weights.W_enc}
    sae.requires_grad_(False).load_state_dict({**encoder, "W_dec": weights.W_dec, "b_dec": weights.b_dec, **weights.others}, assign=True)
    return sae.eval()
