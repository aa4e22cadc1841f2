import pytest
import torch

from ludus.base.errors import ConfigError
from ludus.model.exchange import load, save
from ludus.model.resize import resize

ROW = torch.arange(40).view(2, 20)


@pytest.mark.parametrize("changes", [{"tied": True}, {}, {"head_bias": True}, {"tied": True, "head_bias": True}])
def test_new_tokens_begin_as_the_mean_of_the_old_and_change_nothing_else(tiny, tmp_path, changes: dict):
    before, model = tiny(**changes), resize(tiny(**changes), 70)
    assert model.shape.vocabulary == model.embed_tokens.num_embeddings == model.lm_head.out_features == 70
    assert (model.lm_head.weight is model.embed_tokens.weight) == model.shape.tied
    scores, old = model(ROW), before(ROW)
    torch.testing.assert_close(scores[..., :61], old)
    torch.testing.assert_close(scores[..., 61:], old.mean(-1, keepdim=True).expand(-1, -1, 9))
    torch.testing.assert_close(model.embed_tokens.weight[61:], before.embed_tokens.weight.mean(0).expand(9, -1))
    assert all(weight.requires_grad for weight in model.parameters())
    save(model, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model").eval()(ROW), scores)


def test_a_model_of_half_precision_stays_one_and_a_frozen_one_stays_frozen(tiny):
    model = resize(tiny().bfloat16().requires_grad_(False), 62)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert not any(weight.requires_grad for weight in model.parameters())


def test_the_same_number_is_nothing_to_do_and_fewer_are_refused(tiny):
    model = tiny()
    weight = model.embed_tokens.weight
    assert resize(model, 61).embed_tokens.weight is weight
    with pytest.raises(ConfigError, match="has 61 tokens and cannot be cut to 60"):
        resize(model, 60)
