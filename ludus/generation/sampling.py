"""From logits to the next token. Randomness is an argument."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def restrict(logits: Float[Tensor, "rows vocab"], *, top_k: int = 0, top_p: float = 1.0) -> Float[Tensor, "rows vocab"]:
    """Forbid all but the `top_k` best tokens (0: all), and all beyond the smallest set of probability `top_p`.

    Nucleus sampling is arXiv 1904.09751; the best token always stays.
    """
    if top_k and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        outside = (before >= top_p) & (before > 0)  # nothing is before the best, which stays even at top_p = 0
        beyond = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, outside)
        logits = logits.masked_fill(beyond, float("-inf"))
    return logits


def sample(
    logits: Float[Tensor, "rows vocab"],
    *,
    temperature: float,
    generator: torch.Generator | None,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Draw a token a row and return it with its log-probability under the distribution it was drawn from.

    Temperature 0 takes the best token; its log-probability is then that of the unscaled softmax. Of tokens that share
    the last place among the `top_k` best, some are left out, so that there are never more.
    """
    if temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
    if 0 < top_k < logits.shape[-1]:  # the others cannot be drawn: nothing more is to be done over the vocabulary
        kept, order = logits.topk(top_k, dim=-1)
        places, logps = _sample(restrict(kept / temperature, top_p=top_p), generator)
        return order.gather(1, places[:, None])[:, 0], logps
    return _sample(restrict(logits / temperature, top_p=top_p), generator)


def _sample(logits: Float[Tensor, "rows kept"], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    logps = logits.log_softmax(dim=-1)
    places = _draw(logps.exp(), generator)
    return places, logps.gather(1, places[:, None])[:, 0]


def _draw(probabilities: Float[Tensor, "rows vocab"], generator: torch.Generator | None) -> Int[Tensor, " rows"]:
    """Invert the cumulative distribution at one uniform number a row.

    torch.multinomial draws a number for each entry of the vocabulary, which cost half of all sampling time on a CPU.
    Taking the first entry that lies strictly above the number passes over forbidden tokens, which add nothing.
    """
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    where = torch.rand(total.shape, generator=generator, device=total.device) * total
    # A product rounded up to the total itself would point past the end; step to just below it.
    where = torch.minimum(where, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, where, right=True)[:, 0]
