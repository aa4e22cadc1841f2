"""A base that never saw the token that ends a turn cannot learn it through an adapter on its layers: that is said."""

import torch

from ludus.recipes.base import look_at_end
from ludus.text.settings import TokenizerSettings
from ludus.text.train import train


def test_a_model_that_never_learned_to_end_is_warned_of(tiny, capsys):
    text = "the quick brown fox jumps over the lazy dog " * 3
    tokenizer = train([text], TokenizerSettings(kind="bpe", vocabulary=270))
    model = tiny(vocabulary=tokenizer.vocabulary_size)
    look_at_end(model, tokenizer)
    assert not capsys.readouterr().out
    others = [token for token in range(tokenizer.vocabulary_size) if token != tokenizer.end][:5]
    with torch.no_grad():
        model.lm_head.weight[others] = model.lm_head.weight[tokenizer.end] * 1.001
    look_at_end(model, tokenizer)
    said = capsys.readouterr().out
    assert f"never learned {tokenizer.end_token}" in said
    assert "5 other tokens" in said
    assert "adapter.also=[embed_tokens, lm_head]" in said
    look_at_end(model, tokenizer, virtual=True)
    assert "take another kind of adapter, with also=[embed_tokens, lm_head]" in capsys.readouterr().out
