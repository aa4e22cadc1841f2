"""PiSSA, LoftQ, rsLoRA: where a change starts, what it is multiplied by, and what is saved of it."""

import pytest
import torch

from ludus.adapters.dora import dora
from ludus.adapters.initialise import as_saved, loftq, principal
from ludus.adapters.lora import Lora, lora
from ludus.adapters.quantised import Quantised, quantise_model
from ludus.adapters.settings import DoraSettings, LoraSettings
from ludus.adapters.surgery import adapters, dense_weight, merge, put_module, switched_off
from ludus.base.errors import ConfigError
from ludus.model.presets import FAMILIES

ROW = torch.arange(40).view(2, 20)
PUT = {"lora": (lora, LoraSettings), "dora": (dora, DoraSettings)}
GPT2 = {name: FAMILIES["gpt2"][name] for name in ("activation", "norm", "position") if name in FAMILIES["gpt2"]}


def nudged(model):
    """Let a model's adapters learn something."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def test_a_stabilised_rank_divides_by_its_root(tiny):
    model = lora(tiny(), LoraSettings(rank=16, alpha=8.0, rank_stabilised=True), seed=0)
    assert {adapter.scale for _, adapter in adapters(model)} == {2.0}


@pytest.mark.parametrize("kind", PUT)
def test_pissa_starts_at_the_largest_singular_values_and_changes_nothing(tiny, kind: str):
    put, settings = PUT[kind]
    before = tiny()(ROW)
    model = put(tiny(), settings(rank=4, initialise="pissa"), seed=0)
    torch.testing.assert_close(model(ROW), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(switched_off(model)(ROW), before)
    for name, adapter in adapters(model):
        weight = tiny().get_submodule(name).weight
        left, values, right = torch.linalg.svd(weight)
        best = left[:, :4] * values[:4] @ right[:4]
        product = adapter.lora_B.weight @ adapter.lora_A.weight * adapter.scale
        torch.testing.assert_close(product, best, rtol=1e-4, atol=1e-4)
        assert torch.equal(adapter.base.weight, weight)


@pytest.mark.parametrize("kind", PUT)
@pytest.mark.parametrize("stabilised", [False, True])
def test_what_pissa_learned_is_saved_as_twice_the_rank_on_the_weights_as_they_were(tiny, kind: str, stabilised: bool):
    put, settings = PUT[kind]
    model = nudged(put(tiny(), settings(rank=4, initialise="pissa", rank_stabilised=stabilised), seed=0))
    expected = model(ROW)
    for name, adapter in list(adapters(model)):
        saved = as_saved(adapter)
        assert isinstance(saved, Lora)
        assert (saved.rank, saved.start_A) == (8, None)
        assert saved.scale == pytest.approx(adapter.scale)
        put_module(model, name, saved)
    torch.testing.assert_close(model(ROW), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merge(model)(ROW), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_that_starts_at_nothing_is_saved_as_it_is(tiny):
    for _, adapter in adapters(lora(tiny(), LoraSettings(), seed=0)):
        assert as_saved(adapter) is adapter


@pytest.mark.parametrize("kind", PUT)
def test_layers_in_one_matrix_on_disk_start_together(tiny, kind: str):
    put, settings = PUT[kind]
    before = tiny(kv_heads=4, **GPT2)(ROW)
    model = put(tiny(kv_heads=4, **GPT2), settings(rank=4, initialise="pissa"), seed=0)
    torch.testing.assert_close(model(ROW), before, rtol=1e-5, atol=1e-5)
    nudged(model)
    expected = model(ROW)
    torch.testing.assert_close(merge(model)(ROW), expected, rtol=1e-4, atol=1e-4)


def test_a_state_brings_back_what_a_change_began_with(tiny):
    model = nudged(lora(tiny(), LoraSettings(rank=4, initialise="pissa"), seed=0))
    other = lora(tiny(), LoraSettings(rank=4), seed=1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ROW), model(ROW))


def test_a_rank_beyond_the_layer_is_refused(tiny):
    with pytest.raises(ConfigError, match="rank 33 is more than a layer of"):
        lora(tiny(), LoraSettings(rank=33, initialise="pissa"), seed=0)


@pytest.mark.parametrize("kind", PUT)
def test_loftq_starts_nearer_to_the_weights_than_quantising_alone(tiny, kind: str):
    put, settings = PUT[kind]
    model = put(tiny(), settings(rank=8, initialise="loftq"), seed=0)
    plain, alone = tiny(), quantise_model(tiny(), "nf4")
    for name, adapter in adapters(model):
        assert isinstance(adapter.base, Quantised)
        weight, rough = plain.get_submodule(name).weight, dense_weight(alone.get_submodule(name))
        assert torch.equal(dense_weight(adapter.base), rough)
        lost = torch.linalg.svdvals(weight - rough)
        torch.testing.assert_close(
            torch.linalg.matrix_norm(weight - adapter.merged()), lost[8:].square().sum().sqrt(), rtol=1e-3, atol=1e-5
        )
    assert (model(ROW) - plain(ROW)).square().mean() < 0.8 * (alone(ROW) - plain(ROW)).square().mean()
    nudged(model)
    expected = model(ROW)
    torch.testing.assert_close(merge(model)(ROW), expected, rtol=1e-4, atol=1e-4)


def test_loftq_refuses_weights_that_are_quantised_already(tiny):
    with pytest.raises(ConfigError, match="load the model as it is"):
        loftq(quantise_model(tiny(), "nf4"), LoraSettings(), Lora, seed=0)


def test_the_principal_part_does_not_hang_on_signs():
    weight = torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    A, B = principal(weight, 3, 2.0)
    assert (A.gather(1, A.abs().argmax(dim=1, keepdim=True)) > 0).all()
    left, values, right = torch.linalg.svd(weight)
    torch.testing.assert_close(2.0 * B @ A, left[:, :3] * values[:3] @ right[:3], rtol=1e-5, atol=1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize("stabilised", [False, True])
def test_pissa_is_that_of_peft(stabilised: bool):
    peft = pytest.importorskip("peft")
    generator = torch.Generator().manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj = torch.nn.Linear(12, 20)

    net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
    weight = net.up_proj.weight.clone()
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["up_proj"], init_lora_weights="pissa", use_rslora=stabilised
    )
    theirs = peft.get_peft_model(net, config).base_model.model.up_proj
    A, B = principal(weight, 4, 6 / (2 if stabilised else 4))
    torch.testing.assert_close(
        B @ A, theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(A.norm(dim=1), theirs.lora_A["default"].weight.norm(dim=1), rtol=1e-4, atol=1e-5)
