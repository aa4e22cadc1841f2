import copy

import pytest
import torch
from torch import nn

from ludus.model.float8 import BACKWARD, FORWARD, NEEDED, float8, quantise

ROW = torch.arange(32).view(2, 16)
WIDE = {"width": 64, "head_dim": 16, "hidden": 96}


def capable() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= NEEDED


def gradients(model, device: str = "cpu") -> list[torch.Tensor]:
    model.zero_grad()
    model(ROW.to(device)).log_softmax(-1)[..., 0].sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize(("kind", "error"), [(FORWARD, 2**-4), (BACKWARD, 2**-3)])
def test_a_tensor_fills_the_range_of_its_format(kind: torch.dtype, error: float):
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * 1e-5
    narrow, factor = quantise(x, kind)
    assert narrow.float().abs().max() == torch.finfo(kind).max
    large = x.abs() > x.abs().max() / 100
    assert ((narrow.float() * factor - x).abs() <= error * x.abs())[large].all()
    zeros, factor = quantise(torch.zeros(3, 3), kind)
    assert not (zeros.float() * factor).any()


def test_logits_and_gradients_stay_near_and_names_stay(tiny):
    exact, model = tiny(**WIDE, attention_bias=True), tiny(**WIDE, attention_bias=True)
    found = float8(model, emulate=True)
    assert len(found.converted) == 14
    assert found.converted[0] == "layers.0.self_attn.q_proj"
    assert not found.left
    assert type(model.lm_head) is nn.Linear
    assert model.state_dict().keys() == exact.state_dict().keys()
    logits, expected = model(ROW), exact(ROW)
    assert 0 < (logits - expected).norm() / expected.norm() < 0.15
    for ours, theirs in zip(gradients(model), gradients(exact), strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 0.3


def test_the_product_is_that_of_the_quantised_operands(tiny):
    model = tiny(**WIDE)
    layer = model.layers[0].mlp.up_proj
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    float8(model, emulate=True)
    (narrow, scale), (weight, other) = quantise(x, FORWARD), quantise(layer.weight, FORWARD)
    found = layer(x[None])
    torch.testing.assert_close(found[0], (narrow.float() * scale) @ (weight.float() * other).T)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad(found, (x, layer.weight), upstream)
    slope, third = quantise(upstream[0], BACKWARD)
    slope = slope.float() * third
    torch.testing.assert_close(ours[0], slope @ (weight.float() * other))
    torch.testing.assert_close(ours[1], slope.T @ (narrow.float() * scale))


def test_sizes_that_no_device_multiplies_are_left_and_named(tiny):
    model = tiny(hidden=40)  # width 32, keys 16
    found = float8(model, emulate=True)
    assert found.left == [f"layers.{layer}.mlp.{part}_proj" for layer in (0, 1) for part in ("gate", "up", "down")]
    assert len(found.converted) == 8
    model(ROW[:, :5]).sum().backward()  # rows of a batch that are no multiple either


def test_a_copy_stands_alone(tiny):
    model = tiny(**WIDE)
    float8(model, emulate=True)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.layers[0].mlp.down_proj.weight.zero_()
        assert not torch.equal(other(ROW), model(ROW))


def test_the_product_of_the_device_is_the_emulated_one(tiny):
    model, emulated = tiny(**WIDE), tiny(**WIDE)
    model.precision = emulated.precision = torch.bfloat16
    float8(model)
    float8(emulated, emulate=True)
    torch.testing.assert_close(model(ROW), emulated(ROW), rtol=0.02, atol=0.02)
    for ours, theirs in zip(gradients(model), gradients(emulated), strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not capable(), reason="no GPU that multiplies float8")
def test_a_gpu_multiplies_what_the_emulation_does(tiny):
    exact, model = tiny(**WIDE).cuda(), tiny(**WIDE).cuda()
    exact.precision = model.precision = torch.bfloat16
    float8(exact, emulate=True)
    float8(model)
    torch.testing.assert_close(model(ROW.cuda()), exact(ROW.cuda()), rtol=0.05, atol=0.05)
    for ours, theirs in zip(gradients(model, "cuda"), gradients(exact, "cuda"), strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 0.1
