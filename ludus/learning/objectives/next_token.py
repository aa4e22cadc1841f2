"""Next-token prediction: pretraining and supervised fine-tuning, which differ in `batch.weights` only."""

from torch import Tensor

from ludus.data.batch import Batch
from ludus.learning.objectives.logps import summed_nll
from ludus.model.transformer import Transformer


def next_token(
    model: Transformer, batch: Batch, *, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> dict[str, Tensor]:
    """Sum the weighted negative log-likelihood, in nats.

    With `z_loss` or `label_smoothing` on, `loss` holds them and `nll` is the sum without.
    """
    found = summed_nll(model, batch, z_loss=z_loss, label_smoothing=label_smoothing)
    sums = {"loss": found.loss}
    if z_loss or label_smoothing:
        sums["nll"] = found.nll
    return sums | ({"z_loss": found.z_loss} if z_loss else {})
