import pytest
import torch
from torch import nn

from ludus.generation.engine import Sampling, generate, stream
from ludus.generation.lean import Packed, lean

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]


@pytest.fixture
def narrow(tiny):
    def make(**changes):
        model = tiny(**changes)
        model.precision = torch.bfloat16
        return model

    return make


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"tied": True}])
def test_the_copy_computes_what_the_model_computes_to_the_last_bit(narrow, changes: dict):
    model = narrow(**changes)
    tokens = torch.arange(12).view(2, 6)
    assert torch.equal(lean(model)(tokens), model(tokens))


def test_the_copy_shares_everything_but_the_linear_layers_and_leaves_the_model_alone(narrow):
    model = narrow()
    before = dict(model.named_modules())
    copy = lean(model)
    assert copy.embed_tokens.weight is model.embed_tokens.weight
    assert dict(model.named_modules()) == before
    assert not any(type(module) is nn.Linear for module in copy.modules())
    assert sum(isinstance(module, Packed) for module in copy.modules()) == sum(
        type(module) is nn.Linear for module in model.modules()
    )
    assert lean(copy) is copy


def test_a_model_in_float32_is_not_copied(tiny):
    model = tiny()
    assert lean(model) is model


def test_the_engine_sees_every_update_of_the_weights(narrow):
    model = narrow()
    sampling = Sampling(max_new_tokens=6, temperature=0)
    before = generate(model, PROMPTS, sampling)
    with torch.no_grad():
        model.lm_head.weight.neg_()
    after = generate(model, PROMPTS, sampling)
    assert [each.tokens for each in before] != [each.tokens for each in after]
    assert list(stream(model, PROMPTS[0], sampling)) == after[0].tokens


def test_an_adapter_stays_around_its_packed_layer(narrow):
    from ludus.adapters.apply import apply
    from ludus.adapters.settings import LoraSettings

    model = apply(narrow(), LoraSettings(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
        tokens = torch.arange(6)[None]
        assert torch.equal(lean(model)(tokens), model(tokens))
