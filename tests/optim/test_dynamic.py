import pytest
import torch

from ludus.optim import dynamic


def drawn(count: int, seed: int = 0) -> torch.Tensor:
    """Draw numbers of eight decades."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator) * 10.0 ** -torch.randint(0, 8, (count,), generator=generator)


@pytest.mark.parametrize("signed", [True, False])
def test_levels_ascend_from_the_least_to_one_with_an_exact_zero(signed: bool):
    levels = dynamic.levels(signed)
    assert levels.shape == (256,)
    assert (levels[1:] > levels[:-1]).all()
    assert levels[-1] == 1
    assert (levels == 0).sum() == 1
    assert (levels[0] < 0) == signed


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 70_000, (1 << 18) + 300])
def test_every_value_gets_the_nearest_level(signed: bool, count: int):
    values = drawn(count) if signed else drawn(count).square()
    codes, scales = dynamic.encode(values, signed=signed)
    padded = torch.nn.functional.pad(values, (0, -count % 256)).view(-1, 256)
    assert torch.equal(scales, padded.abs().amax(1))
    normal = (padded * (1 / padded.abs().amax(1))[:, None]).view(-1)[:count]
    levels = dynamic.levels(signed)
    errors = (levels[codes.int()] - normal).abs()
    below, above = levels[(codes.int() - 1).clamp(min=0)], levels[(codes.int() + 1).clamp(max=255)]
    assert (errors <= torch.minimum((below - normal).abs(), (above - normal).abs()) + 1e-7).all()


@pytest.mark.parametrize("signed", [True, False])
def test_no_float_between_minus_one_and_one_is_misplaced_by_the_table(signed: bool):
    halves = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16
    ends = torch.cat([halves.view(torch.float32), (halves | 0xFFFF).view(torch.float32)])
    levels = dynamic.levels(signed)
    middles = (levels[1:] + levels[:-1]) / 2
    edges = torch.cat([middles, middles.nextafter(torch.tensor(2.0)), middles.nextafter(torch.tensor(-2.0)), ends])
    inside = edges[edges.abs() <= 1]
    assert torch.equal(dynamic.nearest(inside, signed).long(), torch.bucketize(inside, middles))


def test_zeros_come_back_as_zeros_beside_anything():
    values = torch.zeros(600)
    values[300] = 3.0
    for signed in (True, False):
        codes, scales = dynamic.encode(values, signed=signed)
        assert torch.equal(dynamic.decode(codes, scales, dynamic.levels(signed)), values)


def test_values_keep_their_shape_and_come_back_within_a_part_in_fifty_or_of_the_largest():
    values = drawn(64 * 90).view(64, 90)
    codes, scales = dynamic.encode(values)
    again = dynamic.decode(codes, scales, dynamic.levels())
    assert again.shape == values.shape
    largest = scales.repeat_interleave(256)[: values.numel()].view(values.shape)
    assert ((again - values).abs() <= 0.0071 * largest).all()
    assert ((again - values).abs() <= 0.5 * values.abs() + 1e-6 * largest).all()


@pytest.mark.oracle
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [1, 255, 257, 100_000])
def test_levels_and_bytes_on_the_grid_are_those_of_bitsandbytes(signed: bool, count: int):
    theirs = pytest.importorskip("bitsandbytes").functional
    levels = theirs.create_dynamic_map(signed=signed)
    assert torch.equal(dynamic.levels(signed), levels)
    values = drawn(count) if signed else drawn(count).square()
    expected, state = theirs.quantize_blockwise(values, code=levels, blocksize=256)
    codes, scales = dynamic.encode(values, signed=signed, on_grid=True)
    assert torch.equal(codes, expected)
    assert torch.equal(scales, state.absmax)
    assert torch.equal(dynamic.decode(codes, scales, levels), theirs.dequantize_blockwise(expected, state))
