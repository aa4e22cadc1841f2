"""A model is given room for more tokens: new rows begin as the mean of the old ones.

The mean is the one start at which a new token changes least: its logit is the mean of all others', so that it takes no
more from them than one more average token would. Nothing is padded to a round number.
"""

import dataclasses

import torch
from torch import Tensor, nn

from ludus.base.errors import ConfigError
from ludus.model.transformer import Transformer


def resize(model: Transformer, vocabulary: int) -> Transformer:
    """Grow the embedding and the head of a model to so many tokens, in place, and return it; what is tied stays tied.

    Raises:
        ConfigError: the model has more tokens already, which no tokenizer can take from it.
    """
    missing = vocabulary - model.shape.vocabulary
    if missing < 0:
        raise ConfigError(
            f"the model has {model.shape.vocabulary} tokens and cannot be cut to {vocabulary}; leave the rest unused"
        )
    if not missing:
        return model
    embedding, head = model.embed_tokens, model.lm_head
    embedding.weight = grown(embedding.weight, missing)
    head.weight = embedding.weight if model.shape.tied else grown(head.weight, missing)
    if isinstance(head.bias, nn.Parameter):
        head.bias = grown(head.bias, missing)
    embedding.num_embeddings = head.out_features = vocabulary
    model.shape = dataclasses.replace(model.shape, vocabulary=vocabulary)
    return model


def grown(rows: Tensor, missing: int) -> nn.Parameter:
    """Return a weight with so many more rows, each the mean of those it had."""
    with torch.no_grad():
        mean = rows.float().mean(dim=0, keepdim=True).to(rows.dtype)
        return nn.Parameter(torch.cat([rows, mean.expand(missing, *rows.shape[1:])]), rows.requires_grad)
