"""Direct preference optimisation, with an optional likelihood term on the chosen answer.

A batch stacks the chosen answers of its pairs above the rejected ones; its unit is the pair.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ludus.data.batch import Batch
from ludus.learning.objectives.logps import token_logps
from ludus.model.transformer import Transformer


def direct_preference(beta: float, *, likelihood: float = 0.0) -> Callable[[Transformer, Batch], dict[str, Tensor]]:
    """Return DPO (arXiv 2305.18290 eq. 7), plus `likelihood` times the chosen answer's NLL per token.

    The sum is that of arXiv 2404.19733 §2.
    Without the likelihood term a small model may push both answers down while loss and margin look fine. `beta = 0`
    leaves the likelihood term alone: the control that tells what the preference itself adds.
    """

    def objective(model: Transformer, batch: Batch) -> dict[str, Tensor]:
        assert batch.reference_logps is not None
        logps = (batch.weights * token_logps(model, batch).logps).sum(dim=1)  # (2 x pairs,)
        lengths = batch.weights.sum(dim=1)
        chosen, rejected = (logps - batch.reference_logps).chunk(2)  # (pairs,) each: log-ratios to the reference
        margin = beta * (chosen - rejected)
        likelihoods = logps.chunk(2)[0] / lengths.chunk(2)[0]
        preference = -F.logsigmoid(margin).sum() if beta else margin.sum()
        return {
            "loss": preference - likelihood * likelihoods.sum(),
            "preference_loss": -F.logsigmoid(margin.detach()).sum(),
            "margin": margin.detach().sum(),
            "accuracy": (chosen > rejected).sum(),  # not the margin, which the control has at zero
            "chosen_logp": logps.detach().chunk(2)[0].sum(),
            "rejected_logp": logps.detach().chunk(2)[1].sum(),
        }

    return objective
