import pytest
import torch

from mi_audit.model.load import load


@pytest.fixture(scope="session", autouse=True)
def _a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def tiny_on():
    """Loads the tiny model on a device in a dtype."""

    def loaded(folder, device, dtype="float32"):
        return load(str(folder), device=device, dtype=dtype, progress=False)

    return loaded
