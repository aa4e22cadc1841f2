"""The clipped policy gradient of PPO and GRPO. Advantages and old log-probabilities arrive as data.

How tokens are aggregated is data as well: the source puts 1, 1 / length or 1 / budget into `batch.weights`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ludus.data.batch import Batch
from ludus.learning.objectives.logps import token_logps
from ludus.model.transformer import Transformer


def clipped_policy(*, low: float, high: float, kl: float = 0.0) -> Callable[[Transformer, Batch], dict[str, Tensor]]:
    """Return the clipped surrogate (PPO, arXiv 1707.06347 eq. 7; GRPO, arXiv 2402.03300 eq. 3).

    The ratio is kept in [1 - low, 1 + high] (apart as in DAPO, arXiv 2503.14476 eq. 8). `kl` weighs the estimator k3,
    exp(d) - 1 - d with d = log reference - log policy, times the ratio, so that its gradient is that of the KL.
    Metrics are weighted like the loss, except `ratio`, `entropy`, `clipped` and `gap`: means over a batch's tokens.
    """

    def objective(model: Transformer, batch: Batch) -> dict[str, Tensor]:
        assert batch.old_logps is not None
        assert batch.advantages is not None
        logps, entropy = token_logps(model, batch, entropy=True)
        ratio = (logps - batch.old_logps).exp()
        gain = torch.minimum(ratio * batch.advantages, ratio.clamp(1 - low, 1 + high) * batch.advantages)
        loss = -gain
        metrics: dict[str, Tensor] = {}
        if batch.reference_logps is not None:
            difference = batch.reference_logps - logps
            k3 = difference.exp() - 1 - difference
            loss = loss + kl * ratio * k3
            metrics["kl"] = (batch.weights * k3).sum()
        active = batch.weights != 0
        per_token = batch.weight / active.sum().clamp(min=1)  # means over tokens, since the loop divides by the weight
        outside = ((ratio < 1 - low) & (batch.advantages < 0)) | ((ratio > 1 + high) & (batch.advantages > 0))
        return {
            "loss": (batch.weights * loss).sum(),
            "ratio": (ratio * active).sum() * per_token,
            "gap": ((logps - batch.old_logps).abs() * active).sum() * per_token,
            "clipped": (outside & active).sum() * per_token,
            "entropy": entropy * per_token,  # type: ignore[operator]
            **metrics,
        }

    return objective
