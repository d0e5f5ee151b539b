"""No test writes into the user's folder."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory):
    """GMOE_HOME is a folder of this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GMOE_HOME", str(tmp_path_factory.mktemp("home")))
        yield
