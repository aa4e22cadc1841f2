"""NEFTune's noise: its size for every token, when it is there, and that nothing else changes."""

import copy

import pytest
import torch

from ludus.adapters import virtual
from ludus.adapters.lora import lora
from ludus.adapters.noise import Noisy, document_lengths, noise, silence
from ludus.adapters.prefix import prefix
from ludus.adapters.prompt import prompt
from ludus.adapters.settings import LoraSettings, PrefixSettings, PromptSettings
from ludus.base.errors import ConfigError
from ludus.model.transformer import Transformer

ALPHA = 5.0
DOCUMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, -1]])
LENGTHS = torch.tensor([[4] * 4 + [2] * 2 + [9] * 9 + [0]])
TOKENS = torch.arange(16)[None]


def drawn(model, tokens, **where) -> torch.Tensor:
    """Return the noise that training adds to each token's embedding."""
    seen = []
    handle = model.layers[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model.train()
    with torch.no_grad():
        model.hidden(tokens, **where)
    handle.remove()
    model.eval()
    return seen[0][:, -tokens.shape[1] :] - model.embed_tokens.weight[tokens]


def test_lengths_are_those_of_each_tokens_own_document():
    assert torch.equal(document_lengths(TOKENS, DOCUMENTS), LENGTHS)
    assert document_lengths(TOKENS, None).unique().tolist() == [16]
    shared = torch.tensor([[0, 0, 0, 1, 1, 2, -1]])
    assert document_lengths(shared, shared, shared=True).tolist() == [[3, 3, 3, 5, 5, 4, 0]]
    assert document_lengths(shared, torch.tensor([[3, 3, -1, -2, 40, 6, 6]])).tolist() == [[2, 2, 0, 0, 1, 2, 2]]


def test_noise_is_uniform_and_as_large_as_the_document_says(tiny):
    model = noise(tiny(), ALPHA)
    torch.manual_seed(0)
    found = drawn(model, TOKENS.expand(2000, -1), documents=DOCUMENTS.expand(2000, -1))
    size = ALPHA / (LENGTHS[0].clamp(min=1) * model.shape.width).sqrt() * (LENGTHS[0] > 0)
    torch.testing.assert_close(found.abs().amax(dim=(0, 2)), size, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.std(dim=(0, 2)), size / 3**0.5, rtol=2e-2, atol=1e-7)
    assert (found.mean(dim=(0, 2)).abs() <= 0.02 * size + 1e-7).all()


def test_evaluation_and_decoding_are_untouched(tiny):
    model, base = noise(tiny(), ALPHA), tiny()
    assert torch.equal(model(TOKENS), base(TOKENS))
    assert not torch.equal(model.train()(TOKENS), base(TOKENS))
    assert not model.embed_tokens._forward_hooks
    assert model.state_dict().keys() == base.state_dict().keys()


def test_the_global_generator_decides_it_so_that_a_resumed_run_is_exact(tiny):
    model = noise(tiny(), ALPHA).train()
    state = torch.get_rng_state()
    once, twice = model(TOKENS), model(TOKENS)
    torch.set_rng_state(state)
    assert torch.equal(model(TOKENS), once)
    assert torch.equal(copy.deepcopy(model)(TOKENS), twice)


@pytest.mark.parametrize(
    "adapt",
    [
        lambda model: prefix(model, PrefixSettings(tokens=3), seed=0),
        lambda model: prompt(model, PromptSettings(tokens=3), seed=0),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_it_leaves_virtual_tokens_alone_whichever_came_first(tiny, adapt, first: bool):
    model = noise(adapt(tiny()), ALPHA) if first else adapt(noise(tiny(), ALPHA))
    row, seen = TOKENS.expand(50, -1), []
    assert torch.equal(model(TOKENS), adapt(tiny())(TOKENS))
    found = drawn(model, row, documents=DOCUMENTS.expand(50, -1))
    size = ALPHA / (LENGTHS[0].clamp(min=1) * model.shape.width).sqrt() * (LENGTHS[0] > 0)
    torch.testing.assert_close(found.abs().amax(dim=(0, 2)), size, rtol=5e-2, atol=1e-6)
    handle = model.layers[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model.train()(TOKENS)
    handle.remove()
    if seen[0].shape[1] > 16:
        assert torch.equal(seen[0][0, :3], model.virtual.weight)
    virtual.remove(model)
    assert isinstance(model, Noisy)
    assert type(silence(model)) is Transformer
    assert torch.equal(model.eval()(TOKENS), tiny()(TOKENS))


def test_it_works_beside_other_adapters_and_may_be_set_again_or_taken_off(tiny):
    model = noise(noise(lora(tiny(), LoraSettings(rank=2), seed=0), 1.0), ALPHA)
    assert type(model).__mro__.count(Noisy) == 1
    assert drawn(model, TOKENS).abs().max() > 1.0 / (16 * 32) ** 0.5
    assert type(noise(model, 0.0)) is Transformer
    assert drawn(model, TOKENS).abs().max() == 0


def test_negative_noise_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"noise of -1\.0 on embeddings"):
        noise(tiny(), -1.0)
