import pytest


@pytest.fixture(scope="session")
def default_bridge(default_model):
    from tests.agreement.bridge import bridge_of

    return bridge_of(default_model)


@pytest.fixture(scope="session")
def gemma_bridge(gemma):
    from tests.agreement.bridge import bridge_of

    return bridge_of(gemma)
