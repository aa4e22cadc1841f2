import pytest
import torch

from ludus.learning.precision import choose


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
