"""Fixtures that several kinds of test share; each real model is loaded once in a session."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.agreement.tiny_models import save_tiny

if TYPE_CHECKING:
    from mi_audit.model.loaded import LoadedModel

pytest_plugins = ["pytester"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def tiny_llama(tiny_folder: Path) -> "LoadedModel":
    from mi_audit.model.load import load

    return load(str(tiny_folder), progress=False)


@pytest.fixture
def cores() -> Iterator[Callable[[int], None]]:
    """Let torch have so many cores, whether the machine has them or not."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few prompts are not cut into a batch for each core."""
    from mi_audit.engine import budget

    monkeypatch.setattr(budget, "ROW_TOKENS", budget.DEFAULT_BUDGET)


@pytest.fixture(scope="session")
def default_model():
    from mi_audit.config import DEFAULT_MODEL
    from mi_audit.model.load import load

    return load(DEFAULT_MODEL, progress=False)


@pytest.fixture(scope="session")
def gemma():
    from mi_audit.model.load import load

    return load("gemma3-270m", progress=False)
