import pytest
import torch

from ludus.adapters.lora import lora
from ludus.adapters.quantised import Quantised, quantise_model
from ludus.adapters.settings import LoraSettings
from ludus.generation import lean as module
from ludus.generation.engine import Sampling, generate
from ludus.generation.lean import Packed, lean

TOKENS = torch.arange(12).view(2, 6)


@torch.no_grad()
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_copy_to_draw_with_turns_weights_back_once_and_computes_the_same_bits(tiny, kind, precision):
    model = quantise_model(tiny(), kind)
    model.precision = precision
    copy = lean(model)
    assert not any(isinstance(each, Quantised) for each in copy.modules())
    assert any(isinstance(each, Packed) for each in copy.modules())
    assert torch.equal(copy(TOKENS), model(TOKENS))
    assert any(isinstance(each, Quantised) for each in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_copy_that_would_take_too_much_memory_keeps_its_bytes(tiny, monkeypatch, precision):
    monkeypatch.setattr(module, "DENSE_BYTES", 1000)
    model = quantise_model(tiny(), "nf4")
    model.precision = precision
    copy = lean(model)
    assert (copy is model) == (precision == torch.float32)
    assert sum(isinstance(each, Quantised) for each in copy.modules()) == 14
    assert torch.equal(copy(TOKENS), model(TOKENS))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_an_adapter_on_a_quantised_layer_draws_what_it_computes(tiny, precision):
    model = lora(quantise_model(tiny(), "nf4"), LoraSettings(), seed=0)
    model.precision = precision
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        found = generate(model, [[5, 6, 7]], Sampling(max_new_tokens=5, temperature=0))[0].tokens
        tokens = [5, 6, 7]
        for token in found:
            assert int(model(torch.tensor([tokens]))[0, -1].argmax()) == token
            tokens.append(token)
