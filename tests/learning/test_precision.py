import pytest
import torch

from ludus.base.errors import ConfigError
from ludus.learning.precision import choose, policy


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is a GPU of some capability."""

    def pretend(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")

    return pretend


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_what_was_set_is_taken(name):
    assert choose(name) == (getattr(torch, name), "as set")


@pytest.mark.parametrize(
    ("vector", "tile", "expected"),
    [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, torch.float32)],
)
def test_auto_follows_the_processor_and_says_so(monkeypatch, vector, tile, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vector)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tile)
    dtype, reason = choose("auto")
    assert dtype == expected
    assert reason.startswith("this processor ")


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (12, 0)])
def test_auto_takes_bfloat16_where_a_gpu_has_it(gpu, capability):
    gpu(*capability)
    found = policy("auto", "cuda")
    assert (found.dtype, found.scaling, found.float8) == (torch.bfloat16, False, False)


def test_auto_takes_float16_with_loss_scaling_on_an_older_gpu(gpu):
    gpu(7, 5)
    found = policy("auto", "cuda")
    assert (found.dtype, found.scaling) == (torch.float16, True)
    assert str(found) == "float16 matrix products with loss scaling (this GPU has no native bfloat16)"


def test_auto_is_careful_elsewhere():
    assert policy("auto", "mps").dtype == torch.float32


def test_float16_needs_loss_scaling_and_nothing_else_does():
    assert [name for name in ("float32", "bfloat16", "float16") if policy(name).scaling] == ["float16"]


def test_float8_is_for_gpus_that_multiply_it(gpu):
    gpu(8, 9)
    found = policy("float8", "cuda")
    assert (found.dtype, found.float8, found.scaling) == (torch.bfloat16, True, False)
    assert str(found) == "bfloat16 matrix products, float8 in the layers (as set)"
    gpu(7, 5)
    with pytest.raises(ConfigError, match=r"needs CUDA capability 8\.9.*Some GPU has 7\.5.*takes float16 there"):
        policy("float8", "cuda")
    with pytest.raises(ConfigError, match=r"this run is on cpu; set precision=auto"):
        policy("float8", "cpu")
