"""Next-token prediction: pretraining and supervised fine-tuning, which differ in `batch.weights` only."""

from torch import Tensor

from ludus.data.batch import Batch
from ludus.learning.objectives.logps import token_logps
from ludus.model.transformer import Transformer


def next_token(model: Transformer, batch: Batch) -> dict[str, Tensor]:
    """Sum the weighted negative log-likelihood, in nats."""
    return {"loss": -(batch.weights * token_logps(model, batch).logps).sum()}
