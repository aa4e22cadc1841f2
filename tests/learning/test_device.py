import pytest
import torch

from ludus.base.errors import ConfigError
from ludus.learning.device import place


@pytest.fixture
def machine(monkeypatch):
    """Pretend what PyTorch finds here."""

    def pretend(*, gpus: int = 0, mac: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mac)

    return pretend


def test_auto_takes_the_gpu_and_names_it(machine):
    machine(gpus=1, mac=True)
    assert str(place()) == "cuda:0 (Some GPU)"
    machine(mac=True)
    assert str(place("auto")) == "mps (the GPU of this Mac)"
    machine()
    assert str(place("auto")) == "cpu (no GPU that PyTorch can use)"


def test_what_was_set_is_taken_or_refused(machine):
    machine(gpus=1)
    assert place("cpu").device == torch.device("cpu")
    assert str(place("cuda")) == "cuda:0 (as set)"
    with pytest.raises(ConfigError, match=r"device=mps, and PyTorch .* finds none here"):
        place("mps")


def test_each_process_of_a_machine_has_a_gpu_of_its_own(machine, monkeypatch):
    machine(gpus=2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert place("cuda").device == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU: there are 2"):
        place("auto")
