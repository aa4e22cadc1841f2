import dataclasses

import pytest
import torch
from torch import nn

from ludus.adapters.apply import apply
from ludus.adapters.files import load, save
from ludus.adapters.lora import lora
from ludus.adapters.quantised import quantise_model
from ludus.adapters.settings import LoraSettings
from ludus.adapters.surgery import merge, switched_off
from ludus.adapters.whole import Whole, whole, wholes
from ludus.base.errors import ConfigError
from ludus.data.batch import Batch
from ludus.learning.objectives.next_token import next_token
from ludus.model import exchange
from ludus.model.resize import resize
from ludus.optim.groups import role

ROW = torch.arange(40).view(2, 20)


def trained(model, names, **how):
    whole(lora(model, LoraSettings(rank=2, targets=["q_proj"]), seed=0), names, **how)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("names", [["embed_tokens"], ["lm_head"], ["norm", "0.mlp"], ["input_layernorm", "o_proj"]])
def test_it_computes_what_it_did_before_and_one_can_look_past_what_it_learns(tiny, tied: bool, names: list[str]):
    plain = tiny(tied=tied)(ROW)
    model = whole(lora(tiny(tied=tied), LoraSettings(targets=["q_proj"]), seed=0), names)
    assert torch.equal(model(ROW), plain)
    assert {name for name, each in model.named_parameters() if each.requires_grad and ".copy." in name}
    learned = trained(tiny(tied=tied), names)
    assert not torch.allclose(learned(ROW), plain, atol=1e-3)
    assert torch.equal(switched_off(learned)(ROW), plain)


@torch.no_grad()
@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_an_embedding_and_a_head_that_are_one_learn_as_one(tiny, tmp_path, name: str):
    model = trained(tiny(tied=True), [name])
    assert model.lm_head.weight is model.embed_tokens.weight
    adapted = model(ROW)
    save(model, tmp_path / "adapter")
    again = load(tiny(tied=True), tmp_path / "adapter")
    assert again.lm_head.weight is again.embed_tokens.weight
    merged = merge(model)
    torch.testing.assert_close(merged(ROW), adapted, rtol=1e-5, atol=1e-5)
    assert merged.lm_head.weight is merged.embed_tokens.weight
    assert merged.shape.tied
    exchange.save(merged, tmp_path / "model")
    assert torch.equal(exchange.load(tmp_path / "model")(ROW), merged(ROW))


@torch.no_grad()
def test_what_was_one_and_did_not_learn_as_one_is_two_once_merged(tiny, tmp_path):
    model = trained(tiny(tied=True), ["lm_head"], shared=False)
    adapted = model(ROW)
    merged = merge(model)
    torch.testing.assert_close(merged(ROW), adapted, rtol=1e-5, atol=1e-5)
    assert not merged.shape.tied
    exchange.save(merged, tmp_path / "model")
    assert torch.equal(exchange.load(tmp_path / "model")(ROW), merged(ROW))


def test_the_objective_reaches_an_embedding_and_a_head_under_their_roles(tiny):
    model = trained(tiny(), ["embed_tokens", "lm_head", "norm"])
    batch = Batch(ROW, torch.ones(2, 19), 38.0)
    next_token(model, batch)["loss"].backward()
    learning = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert all(
        each.grad is not None and each.grad.abs().sum() > 0 for name, each in learning.items() if "B" not in name
    )
    roles = {name: role(name, each) for name, each in learning.items() if ".copy." in name}
    assert roles == {
        "embed_tokens.copy.weight": "embedding",
        "lm_head.copy.weight": "head",
        "norm.copy.weight": "scalar",
    }


def test_it_learns_in_float32_whatever_the_model_is_in(tiny):
    model = tiny().to(torch.bfloat16)
    model.precision = torch.bfloat16
    plain = model(ROW)
    whole(lora(model, LoraSettings(targets=["q_proj"]), seed=0), ["lm_head", "norm", "embed_tokens"])
    assert torch.equal(model(ROW), plain)
    assert {each.dtype for each in model.parameters() if each.requires_grad} == {torch.float32}


def test_new_tokens_come_with_the_adapter(tiny, tmp_path):
    model = trained(resize(tiny(), 64), ["embed_tokens", "lm_head"])
    save(model, tmp_path / "adapter")
    again = load(tiny(), tmp_path / "adapter")
    assert again.shape == dataclasses.replace(tiny().shape, vocabulary=64)
    assert torch.equal(again(ROW), model(ROW))


@pytest.mark.parametrize(
    ("name", "says"),
    [("lm_hed", "did you mean lm_head"), ("q_proj", "under the adapter"), ("down_proj", "is quantised"), ("", "known")],
)
def test_what_cannot_be_trained_whole_is_refused(tiny, name: str, says: str):
    model = tiny()
    if name == "down_proj":
        quantise_model(model, "nf4")
    lora(model, LoraSettings(targets=["q_proj"]), seed=0)
    with pytest.raises(ConfigError, match=says):
        whole(model, [name])


def test_asking_twice_changes_nothing(tiny):
    model = trained(tiny(), ["norm"])
    before = wholes(model)["norm"]
    assert wholes(whole(model, ["norm"]))["norm"] is before
    assert isinstance(before.base, nn.Module)
    assert not isinstance(before.base, Whole)


def test_apply_leaves_a_plain_model_plain(tiny):
    assert not wholes(apply(tiny(), LoraSettings(), seed=0))
