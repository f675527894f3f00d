"""float32 means float32: any library in the process may have told torch to multiply float32 matrices in TensorFloat32 or bfloat16."""

import os
from typing import Final

import torch

from mi_audit.errors import ModelError

OVERRIDE: Final = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
"""Environment variable that takes the choice from the process."""


def use_full_precision() -> None:
    """Make matrix products, and convolutions on a GPU, compute on float32 in full from here on, for all of the process.

    Settings are written and never read: reading raises where older ones and newer ones, which say it for each kind of operation, were mixed.

    Raises:
        ModelError: the environment forbids it.
    """
    if os.environ.get(OVERRIDE) == "1":
        raise ModelError(
            f"{OVERRIDE}=1 makes a GPU compute on float32 in TensorFloat32, with 10 bits of 23: unset it, or choose --audit-dtype bfloat16 knowingly"
        )
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for operation in ("conv", "rnn"):  # a newer torch: else they follow what was said for all backends
        if (settings := getattr(torch.backends.cudnn, operation, None)) is not None:
            settings.fp32_precision = "ieee"
