import pytest
import torch
from pydantic import TypeAdapter

from ludus.adapters.apply import apply
from ludus.adapters.certificate import merge_certificate, random_tokens, refuse
from ludus.adapters.quantised import quantise_model
from ludus.adapters.settings import AdapterSettings, LoraSettings, PrefixSettings
from ludus.adapters.surgery import adapters, is_adapted
from ludus.base.errors import CheckpointError, ConfigError


def adapted(model, settings=None):
    apply(model, settings or LoraSettings(rank=4), seed=0)
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.lora_B.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    return model


@pytest.mark.parametrize("quantised", ["none", "nf4"])
def test_a_merge_is_proven(tiny, quantised: str):
    model = tiny() if quantised == "none" else quantise_model(tiny(), "nf4")
    tokens = random_tokens(model.shape)
    found = merge_certificate(adapted(model), tokens)
    refuse(found)
    assert found["float32"]["relative_difference"] < 1e-5
    assert (found["kind"], found["layers"], found["base_quantised"]) == ("lora", 14, quantised)
    assert found["argmax_agreement"] == 1.0
    assert found["tokens"] == tokens.numel()
    assert not is_adapted(model)
    assert {each.dtype for each in model.parameters()} == {torch.float32}


def test_narrow_weights_say_what_they_cost(tiny):
    found = merge_certificate(adapted(model := tiny()), random_tokens(model.shape), dtype=torch.bfloat16)
    refuse(found)
    assert found["dtype"] == "bfloat16"
    assert 1e-4 < found["relative_difference"] < 5e-2
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


def test_a_merge_that_is_wrong_is_refused(tiny, monkeypatch):
    from ludus.adapters.lora import Lora

    merged = Lora.merged
    monkeypatch.setattr(Lora, "merged", lambda self: merged(self) * 1.01)
    found = merge_certificate(adapted(model := tiny()), random_tokens(model.shape))
    with pytest.raises(CheckpointError, match=r"differs from the adapter by .* nothing was written"):
        refuse(found)


def test_a_logit_that_is_no_number_is_refused(tiny):
    model = adapted(tiny())
    with torch.no_grad():
        model.layers[0].mlp.up_proj.lora_B.weight[0] = float("nan")
    with pytest.raises(CheckpointError, match="nan"):
        refuse(merge_certificate(model, random_tokens(model.shape)))


def test_virtual_tokens_cannot_be_merged(tiny):
    with pytest.raises(ConfigError, match="cannot be merged"):
        merge_certificate(apply(model := tiny(), PrefixSettings(), seed=0), random_tokens(model.shape))


@pytest.mark.parametrize("kind", ["lora", "dora", "vera", "loha", "ia3"])
def test_no_kind_is_compared_with_itself(tiny, kind: str):
    model = apply(tiny(), TypeAdapter(AdapterSettings).validate_python({"kind": kind}), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.empty_like(parameter).normal_(std=0.2, generator=generator)
    found = merge_certificate(model, random_tokens(model.shape))
    assert 0 < found["largest_difference"] < 1e-2
