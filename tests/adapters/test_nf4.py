import pytest
import torch

from ludus.adapters import nf4

SHAPES = [(64, 64), (1, 1), (7, 9), (1, 65), (5, 208), (300, 130), (128, 129), (700, 1000)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def drawn(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(shape[1])) * 0.02).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_comes_back_as_the_level_nearest_to_it(shape: tuple[int, int]):
    weight = drawn(shape)
    code = nf4.encode(weight)
    again = nf4.decode(code, shape)
    scales = nf4.scales_of(code).repeat_interleave(64)[: weight.numel()].view(shape)
    levels = torch.tensor(nf4.LEVELS)
    nearest = ((weight / scales)[..., None] - levels).abs().amin(-1)
    # Scales lost at most a part in a hundred of the largest, which can move a weight over a threshold.
    assert ((again / scales - weight / scales).abs() <= nearest + 0.02).all()


def test_two_weights_lie_in_a_byte_the_first_in_its_upper_half():
    weight = torch.zeros(1, 64)
    weight[0, :4] = torch.tensor([-1.0, 1.0, 0.0, 0.5626170039176941])
    assert nf4.encode(weight).packed[:3].tolist() == [0x0F, 0x7D, 0x77]


@pytest.mark.parametrize("shape", [(8, 8), (3, 21)])
def test_zeros_stay_zeros(shape: tuple[int, int]):
    assert torch.equal(nf4.decode(nf4.encode(torch.zeros(shape)), shape), torch.zeros(shape))


def test_a_large_matrix_is_coded_and_decoded_in_pieces(monkeypatch):
    weight = drawn((300, 130))
    whole = nf4.encode(weight)
    monkeypatch.setattr(nf4, "PIECES", {"cpu": 4096})
    pieces = nf4.encode(weight)
    assert all(torch.equal(one, other) for one, other in zip(whole[:4], pieces[:4], strict=True))
    for dtype in DTYPES:
        found = nf4.decode(pieces, (300, 130), dtype)
        assert found.dtype == dtype
        monkeypatch.setattr(nf4, "PIECES", {"cpu": 1 << 18})
        assert torch.equal(found, nf4.decode(whole, (300, 130), dtype))


@pytest.mark.parametrize("shape", [(64, 64), (7, 9), (300, 130)])
def test_many_threads_look_up_the_same_values(monkeypatch, shape: tuple[int, int]):
    code = nf4.encode(drawn(shape))
    few = nf4.decode(code, shape)
    monkeypatch.setattr(nf4, "MANY_THREADS", 1)
    assert torch.equal(nf4.decode(code, shape), few)


def test_a_weight_takes_little_more_than_half_a_byte():
    code = nf4.encode(drawn((1024, 1024)))
    bits = 8 * sum(tensor.nbytes for tensor in code[:4]) / 1024**2
    assert bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)


def test_the_second_quantisation_costs_next_to_nothing():
    weight = drawn((512, 512))
    code = nf4.encode(weight)
    once = nf4.Nf4(code.packed, weight.view(-1, 64).abs().amax(1), None, None)
    errors = [(nf4.decode(each, (512, 512)) - weight).square().mean().sqrt() / weight.std() for each in (once, code)]
    assert float(errors[0]) == pytest.approx(0.092, abs=0.002)
    assert float(errors[1]) < float(errors[0]) * 1.005


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_and_values_are_those_of_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype):
    theirs = pytest.importorskip("bitsandbytes").functional
    weight = drawn(shape, dtype)
    packed, state = theirs.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    code = nf4.encode(weight)
    assert torch.equal(code.packed, packed.view(-1))
    assert torch.equal(code.scales, state.absmax)
    assert torch.equal(code.coarse, state.state2.absmax)
    assert torch.equal(code.offset, state.offset)
    if weight.numel() % 2 == 0:  # for others it asks PyTorch's compiler, which takes half a minute
        state.shape = torch.Size([1, weight.numel()])  # as rows, its kernel for processors mixes up their blocks
        assert torch.equal(nf4.decode(code, shape, dtype).view(1, -1), theirs.dequantize_4bit(packed, state))
