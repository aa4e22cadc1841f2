import pytest
import torch

from ludus.model.transformer import build


def tokens(batch: int = 3, time: int = 12, vocabulary: int = 61) -> torch.Tensor:
    return torch.randint(vocabulary, (batch, time), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_a_later_token_changes_no_earlier_logits(tiny, backend: str):
    model, row = tiny(backend=backend), tokens()
    changed = row.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 61
    before, after = model(row), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)


def test_every_weight_takes_part(tiny):
    model = tiny()
    model(tokens()).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_the_same_seed_builds_the_same_model_and_leaves_the_global_generator_alone(shape):
    before = torch.get_rng_state()
    first, second, other = (build(shape(), seed=seed).embed_tokens.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_blocks_start_as_the_identity(shape):
    model = build(shape(), seed=0)
    embedded = model.norm(model.embed_tokens(tokens()))
    assert torch.equal(model.hidden(tokens()), embedded)


def test_a_tied_head_is_the_embedding(tiny):
    model = tiny(tied=True)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_dropout_acts_in_training_only(tiny):
    model = tiny(dropout=0.5)
    assert torch.equal(model(tokens()), model(tokens()))
    model.train()
    assert not torch.equal(model(tokens()), model(tokens()))


def test_bfloat16_products_leave_logits_and_weights_in_float32(tiny):
    model = tiny()
    exact = model(tokens())
    model.precision = torch.bfloat16
    rounded = model(tokens())
    assert rounded.dtype == model.embed_tokens.weight.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1
