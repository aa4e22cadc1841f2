import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from ludus.adapters import kernels
from ludus.adapters.lora import lora
from ludus.adapters.quantised import Quantised, describe, held, quantise, quantise_model, quantiser
from ludus.adapters.settings import LoraSettings
from ludus.base.errors import ConfigError, MissingExtra
from ludus.data.batch import Batch
from ludus.learning.objectives.next_token import next_token
from ludus.optim.groups import build as build_optimizer
from ludus.optim.settings import AdamWSettings
from ludus.parallel.recomputation import recompute

KINDS = ["nf4", "int8"]


def linear(inputs: int = 130, outputs: int = 96, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape).mul(1.7).sin() * 0.05)
    return layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradient_are_those_of_a_dense_layer_with_its_weights(kind, bias: bool):
    layer = quantise(linear(bias=bias), kind)
    results = []
    for form in (layer, lambda x: F.linear(x, layer.dense(), layer.bias)):
        x = torch.randn(3, 5, 130, generator=torch.Generator().manual_seed(0)).requires_grad_()
        out = form(x)
        out.square().sum().backward()
        results.append((out.detach(), x.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_weights_are_made_in_its_precision_at_once(kind, monkeypatch):
    layer, asked = quantise(linear(), kind), []
    real = layer.dense
    monkeypatch.setattr(layer, "dense", lambda dtype: asked.append(dtype) or real(dtype))
    x = torch.randn(4, 130, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert asked == [torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_learns_and_autograd_keeps_nothing_dense(kind):
    layer, kept = quantise(linear(), kind), []
    x = torch.randn(4, 130, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x).sum().backward()
    assert not list(layer.parameters())
    assert not kept
    frozen = layer(x.detach())
    assert not frozen.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_copies_states_and_moves_keep_every_byte(kind):
    layer, other = quantise(linear(), kind), quantise(linear(130, 96, bias=True), kind)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    nn.init.zeros_(other.bias)
    other.code[0].zero_()
    other.load_state_dict(state)
    for each in (copy.deepcopy(layer), other, copy.deepcopy(layer).to(torch.bfloat16), copy.deepcopy(layer).to("cpu")):
        assert torch.equal(each.dense(), layer.dense())
        assert each.kind == kind
    assert copy.deepcopy(layer).double().bias.dtype == torch.float64


def test_the_meta_device_has_room_for_it():
    layer = quantise(linear(), "nf4").to("meta")
    assert layer.packed.device.type == "meta"
    assert layer.dense(torch.bfloat16).shape == (96, 130)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_without_content_can_be_planned_with(kind):
    with FakeTensorMode():
        x = torch.randn(4, 130, requires_grad=True)
        quantise(linear(), kind)(x).sum().backward()
        assert type(x.grad) is FakeTensor
    assert type(quantise(linear(), kind).dense()) is torch.Tensor


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_quantised_but_for_head_and_embedding(tiny, kind):
    model = quantise_model(tiny(), kind)
    layers = [module for module in model.modules() if isinstance(module, Quantised)]
    assert len(layers) == 7 * model.shape.layers
    assert type(model.lm_head) is nn.Linear
    assert not any(type(module) is nn.Linear for module in model.layers.modules())
    weights, size = held(model)
    assert weights == sum(parameter.numel() for name, parameter in tiny().named_parameters() if "proj" in name)
    assert f"{size * 8 / weights:.3f} bits" in describe(model)
    tokens = torch.arange(24).view(2, 12)
    assert torch.cosine_similarity(model(tokens).flatten(), tiny()(tokens).flatten(), dim=0) > 0.9


def test_a_described_model_says_kind_and_kernel(tiny):
    assert describe(tiny()) == ""
    assert describe(quantise_model(tiny(), "nf4")).startswith("nf4 with double quantisation by PyTorch")
    assert describe(quantise_model(tiny(), "int8")).startswith("int8 by rows by PyTorch")


def test_a_quantiser_serves_one_layer_at_a_time():
    layer = linear()
    made = quantiser("nf4")("layers.0.mlp.up_proj", layer)
    assert isinstance(made, Quantised)
    assert torch.equal(made.dense(), quantise(layer, "nf4").dense())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recomputed", [False, True])
def test_adapters_learn_on_quantised_layers_and_nothing_else_does(tiny, kind, recomputed: bool):
    model = lora(quantise_model(tiny(), kind), LoraSettings(), seed=0)
    model = (recompute(model) if recomputed else model).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_optimizer(model.named_parameters(), AdamWSettings(learning_rate=0.1))
    model(torch.arange(24).view(2, 12)).square().mean().backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_the_first_losses_on_quantised_weights_are_those_on_dense_ones_within_a_percent(tiny):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 61, (8, 32), generator=generator)
    batch, losses = Batch(tokens, torch.ones(8, 31), 8 * 31.0), {}
    for kind in ("none", *KINDS):
        model = tiny(width=128, hidden=192, head_dim=32)
        model = lora(model if kind == "none" else quantise_model(model, kind), LoraSettings(), seed=0).train()
        optimizer, losses[kind] = build_optimizer(model.named_parameters(), AdamWSettings(learning_rate=3e-3)), []
        for _ in range(4):
            loss = next_token(model, batch)["loss"] / batch.weight
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[kind].append(float(loss.detach()))
    assert losses["none"][-1] < losses["none"][0]
    for kind in KINDS:
        assert losses[kind] == pytest.approx(losses["none"], rel=0.01)


def test_kernels_are_chosen_by_what_is_installed_and_where_they_pay(monkeypatch):
    kernels.choose.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert kernels.choose("nf4", "auto", "cuda") == "bitsandbytes"
    assert kernels.choose("nf4", "auto", "cpu") == "torch"
    assert kernels.choose("int8", "auto", "cuda") == "torch"
    assert kernels.choose("nf4", "torch", "cuda") == "torch"
    with pytest.raises(ConfigError, match="int8"):
        kernels.choose("int8", "bitsandbytes", "cuda")
    kernels.choose.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert kernels.choose("nf4", "auto", "cuda") == "torch"
    with pytest.raises(MissingExtra, match="pip install"):
        quantise(linear(), "nf4", kernel="bitsandbytes")
    kernels.choose.cache_clear()


@pytest.mark.oracle
@pytest.mark.parametrize("shape", [(96, 130), (256, 688), (64, 64), (5, 208), (7, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernels_of_bitsandbytes_give_the_same_bits(shape: tuple[int, int], dtype: torch.dtype):
    pytest.importorskip("bitsandbytes")
    layer = linear(shape[1], shape[0])
    ours, theirs = (quantise(layer, "nf4", kernel=kernel) for kernel in ("torch", "bitsandbytes"))
    assert theirs.kernel == "bitsandbytes"
    assert torch.equal(ours.dense(dtype), theirs.dense(dtype))
    assert "by bitsandbytes 0." in describe(theirs)
