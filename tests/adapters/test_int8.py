import pytest
import torch

from ludus.adapters import int8


def drawn(rows: int = 40, columns: int = 130) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 1, rows)[:, None]


def test_a_weight_is_off_by_at_most_half_a_step_of_its_row():
    weight = drawn()
    again = int8.decode(int8.encode(weight))
    steps = weight.abs().amax(1, keepdim=True) / 127
    assert ((again - weight).abs() <= 0.501 * steps).all()


def test_the_largest_weight_of_a_row_comes_back_whole_and_zero_rows_too():
    weight = drawn()
    weight[3] = 0
    again = int8.decode(int8.encode(weight))
    at = weight.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(again.gather(1, at), weight.gather(1, at), rtol=1e-6, atol=0)
    assert torch.equal(again[3], weight[3])


def test_the_mirror_of_a_matrix_has_the_mirror_of_its_codes():
    weight = drawn()
    assert torch.equal(int8.encode(-weight).codes, -int8.encode(weight).codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_are_multiplied_in_float32_and_rounded_once(dtype: torch.dtype):
    code = int8.encode(drawn().to(dtype))
    assert torch.equal(int8.decode(code, dtype), int8.decode(code).to(dtype))


@pytest.mark.oracle
def test_bytes_are_those_of_bitsandbytes():
    theirs = pytest.importorskip("bitsandbytes").functional
    weight = drawn()
    codes, scales, _ = theirs.int8_vectorwise_quant(weight)
    code = int8.encode(weight)
    assert torch.equal(code.codes, codes)
    assert torch.equal(code.scales, scales)
    torch.testing.assert_close(int8.decode(code), theirs.int8_vectorwise_dequant(codes, scales), rtol=1e-6, atol=0)
