import pytest
import torch
import torch.nn.functional as F

from ludus.model.norms import PlainNorm, RMSNorm, head_norm, stream_norm


def drawn(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_norm_and_its_gradient_are_those_of_pytorch(weighted: bool, dtype: torch.dtype):
    x, weight, direction = (
        drawn(3, 5, 8, dtype=dtype),
        drawn(8, seed=1, dtype=dtype),
        drawn(3, 5, 8, seed=2, dtype=dtype),
    )
    norm = RMSNorm(8, 1e-3) if weighted else PlainNorm(1e-3)
    if weighted:
        norm.weight = torch.nn.Parameter(weight.detach().clone())
    expected = F.rms_norm(x, (8,), weight if weighted else None, 1e-3)
    found = norm(x)
    exact = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found, expected, **exact)
    inputs = [x, weight] if weighted else [x]
    ours = torch.autograd.grad((found * direction).sum(), [x, *norm.parameters()])
    for mine, theirs in zip(ours, torch.autograd.grad((expected * direction).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, theirs, **exact)


def test_a_narrow_input_is_normalised_in_float32():
    x = drawn(4, 64, dtype=torch.bfloat16)
    found = PlainNorm(1e-5)(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.rms_norm(x.float(), (64,), None, 1e-5))
    found.sum().backward()
    assert x.grad.dtype == torch.bfloat16


def test_an_architecture_says_which_norm(shape):
    kinds = [type(stream_norm(shape(norm=norm))).__name__ for norm in ("rms", "layer", "plain")]
    assert kinds == ["RMSNorm", "LayerNorm", "PlainNorm"]
    assert stream_norm(shape(norm="layer", norm_bias=False)).bias is None
    assert head_norm(shape()) is None
    assert head_norm(shape(qk_norm="rms")).weight.shape == (8,)
    assert not list(head_norm(shape(qk_norm="plain")).parameters())
