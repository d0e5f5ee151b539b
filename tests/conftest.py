"""No test writes into the user's folder; a fake card for those that want one."""

import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads wait asleep: there are as many tests as cores


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory):
    """GMOE_HOME is a folder of this session; device="auto" is the CPU, whatever this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gmoe.experts.device_auto.usable", lambda: False)
        patch.setenv("GMOE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session", autouse=True)
def interpreter():
    """Where the modules of tests chose Triton's interpreter, it is a fast one."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from tests.interpreter import patched_once

    with patched_once():
        yield


@pytest.fixture
def card(monkeypatch):
    """A fake device, which is the card of this machine."""
    from tests import fake_device

    made = fake_device.FakeDevice()
    monkeypatch.setattr("gmoe.llm.open_device", lambda name: made if name.startswith("cuda") else None)
    yield made
    fake_device.refused.clear()


@pytest.fixture
def triton(monkeypatch):
    """The fake device's kernels are Triton's, interpreted."""
    pytest.importorskip("triton", reason="triton is not installed")
    from tests import fake_device

    monkeypatch.setattr(fake_device.FakeDevice, "computes", staticmethod(fake_device.interpreted))
