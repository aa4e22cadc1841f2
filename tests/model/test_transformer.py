import dataclasses

import pytest
import torch
from switches import KINDS, SWITCHES, switched

from ludus.base.errors import ConfigError
from ludus.model.transformer import Transformer, build


def tokens(batch: int = 3, time: int = 12, vocabulary: int = 61) -> torch.Tensor:
    return torch.randint(vocabulary, (batch, time), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", ["llama plain", "llama fused", *KINDS])
@torch.no_grad()
def test_a_later_token_changes_no_earlier_logits(tiny, kind: str):
    model, row = switched(tiny, kind), tokens()
    changed = row.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 61
    before, after = model(row), model(changed)
    # The number of tokens that an expert gets may change the last digit of each.
    exact = 1e-6 if model.shape.experts else 0.0
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=exact, atol=exact)
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_weight_takes_part(tiny, switch: str):
    model = tiny(**SWITCHES[switch])
    model(tokens()).square().sum().backward()
    idle = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert not [name for name in idle if not name.endswith("k_proj.bias")]  # which adds the same to all scores


@pytest.mark.parametrize("switch", SWITCHES)
def test_names_of_weights_are_llamas_and_a_few_more(shape, switch: str):
    llama = {name.split(".")[-2] for name in Transformer(shape()).state_dict()}
    more = {name.split(".")[-2] for name in Transformer(shape(**SWITCHES[switch])).state_dict()} - llama
    known = {"embed_positions", "embedding_norm", "q_norm", "k_norm", "experts", "router"}
    assert more <= known | {f"{place}_convolution" for place in ("embedding", "attention", "mlp")} | {"0", "1", "2"}


def test_the_same_seed_builds_the_same_model_and_leaves_the_global_generator_alone(shape):
    before = torch.get_rng_state()
    first, second, other = (build(shape(), seed=seed).embed_tokens.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("switch", ["llama", "gptj", "modern", "mixture"])
def test_blocks_start_as_the_identity(shape, switch: str):
    model = build(dataclasses.replace(shape(**SWITCHES[switch]), embedding_norm=False), seed=0)
    embedded = model.norm(model.embed_tokens(tokens()))
    assert torch.equal(model.hidden(tokens()), embedded)


def test_a_tied_head_is_the_embedding(tiny):
    model = tiny(tied=True)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())


@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_dropout_acts_in_training_only(tiny, backend: str):
    model = tiny(dropout=0.5, backend=backend)
    assert torch.equal(model(tokens()), model(tokens()))
    model.train()
    assert not torch.equal(model(tokens()), model(tokens()))


def test_dropout_falls_on_embedding_attention_weights_and_both_outputs(tiny):
    model = tiny(dropout=0.5).train()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert len(layers) == 1 + 2 * model.shape.layers
    for layer in layers:
        layer.p = 0.0
    assert torch.equal(model(tokens()), model.eval()(tokens()))


@pytest.mark.parametrize("switch", SWITCHES)
def test_bfloat16_products_leave_logits_and_weights_in_float32(tiny, switch: str):
    model = switched(tiny, f"{switch} plain")
    exact = model(tokens())
    model.precision = torch.bfloat16
    rounded = model(tokens())
    assert rounded.dtype == model.embed_tokens.weight.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.1


def test_a_soft_cap_bounds_the_logits_and_keeps_their_order(tiny):
    open_model, capped = tiny(), tiny(logit_softcap=0.5)
    assert float(open_model(tokens()).detach().abs().max()) > 1
    assert float(capped(tokens()).detach().abs().max()) <= 0.5
    torch.testing.assert_close(capped(tokens()), 0.5 * torch.tanh(open_model(tokens()) / 0.5))


def test_more_tokens_than_learned_positions_are_refused(tiny):
    model = tiny(position="learned", context=8)
    assert model(tokens(time=8)).isfinite().all()
    with pytest.raises(ConfigError, match="9 tokens in a row, and the model has learned 8 positions"):
        model(tokens(time=9))


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_first_draw_of_gpt2_is_narrow_and_narrower_where_it_is_added(shape, switch: str):
    model = build(shape(**SWITCHES[switch]), seed=0, initial="gpt2")
    for name, parameter in model.named_parameters():
        if name.endswith(("proj.weight", "embed_tokens.weight", "lm_head.weight", "embed_positions.weight")):
            added = name.endswith(("o_proj.weight", "down_proj.weight"))
            assert float(parameter.detach().std()) == pytest.approx(0.01 if added else 0.02, rel=0.15), name
        elif name.endswith(("bias", "convolution.weight")):
            assert not parameter.any(), name
