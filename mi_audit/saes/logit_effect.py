"""Which tokens a latent makes likelier, straight from its decoder row to the logits: through the last norm's gain and the unembedding, and nothing between."""

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from mi_audit.errors import DetectorError
from mi_audit.plan.places import At

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

WRITES: Final = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Hook points that are in the residual stream or are added to it."""


@torch.no_grad()
def logit_effect(model: "LoadedModel", at: At, row: Tensor) -> Tensor:
    """What a direction [d_model] at a hook point does to every logit [vocabulary], to first order and but for the norm's scale, which all tokens share.

    The gain is read off the norm itself: its response to a vector of mean 0 and mean square 1 less that to its opposite, halved; what it takes out of all
    entries together (LayerNorm's mean) is taken out of the direction.

    Raises:
        DetectorError: the hook point does not write to the residual stream, so the way to the logits goes through other weights; or the model has no
            unembedding.
    """
    if at.point not in WRITES:
        raise DetectorError(f"{at} is not in the residual stream, so a latent there has no direct effect on the logits")
    unembedding: object = model.hf.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(unembedding, nn.Linear):
        raise DetectorError(f"{model.ref} has no unembedding that is a linear map")
    direction = row.to(model.device, model.dtype)
    norm = model.hook_points.decoder.final_norm
    if norm is not None:
        ones = torch.ones_like(direction)
        if torch.allclose(norm(ones), norm(-ones), atol=1e-3):
            direction = direction - direction.mean()
        signs = torch.where(torch.arange(len(direction), device=direction.device) % 2 == 0, ones, -ones)
        direction = direction * (norm(signs) - norm(-signs)) / 2 * signs
    effect: Tensor = (unembedding.weight @ direction).to(torch.float32).cpu()
    return effect
