"""A short causal convolution over the earlier tokens of the same document, each channel weighed on its own.

It adds to its input and starts at zero, as the identity. Where documents share a row it never reaches across a border;
after a shared prompt it reaches back into the prompt's end, wherever that lies; while decoding, the last inputs are
kept in the cache. So a token's result is the same packed, padded, cached or alone.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ludus.model.sight import Sight


class Convolution(nn.Module):
    """Add `taps` earlier inputs, `weight[k]` times the one k + 1 tokens back; `site` is its name in a cache."""

    def __init__(self, width: int, taps: int, site: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(taps, width))
        self.site = site

    def forward(self, x: Float[Tensor, "batch time channels"], sight: Sight) -> Float[Tensor, "batch time channels"]:
        """Mix in the earlier tokens."""
        taps = len(self.weight)
        weight = self.weight.to(x.dtype)
        if sight.shared and sight.documents is not None:
            return _gathered(x, weight, sight.standing, sight.documents)
        if sight.cache is not None:
            kept = sight.cache.recall(self.site, x, taps)
            within = _within(sight.standing[:, -x.shape[1] :], taps)
            within = torch.cat((within.new_zeros(taps, len(within[0]), taps), within), dim=2)
            return _Shifted.apply(torch.cat((kept, x), dim=1), weight, within)[:, taps:]  # type: ignore[index]
        within = None if sight.documents is None else _within(sight.standing, taps)
        return _Shifted.apply(x, weight, within)  # type: ignore[return-value]


def _within(standing: Int[Tensor, "batch time"], taps: int) -> Bool[Tensor, "taps batch time"]:
    """Tell for each distance back whether there is a token of the same document."""
    backs = torch.arange(1, taps + 1, device=standing.device)
    return standing >= backs[:, None, None]


class _Shifted(torch.autograd.Function):
    """x[t] + sum over k of weight[k] x[t - k - 1], where `within[k, :, t]` or wherever there is one; in one buffer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, within: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, within)
        mixed = x.clone(memory_format=torch.contiguous_format)
        for back, factors in enumerate(weight, 1):
            mixed[:, back:].addcmul_(_limited(x[:, :-back], within, back), factors)
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, within = ctx.saved_tensors
        of_x, of_weight = gradient.clone(memory_format=torch.contiguous_format), torch.zeros_like(weight)
        for back, factors in enumerate(weight, 1):
            arriving = _limited(gradient[:, back:], within, back)
            of_x[:, :-back].addcmul_(arriving, factors)
            of_weight[back - 1] = (arriving * x[:, :-back]).sum((0, 1))
        return of_x, of_weight, None


def _limited(x: Tensor, within: Tensor | None, back: int) -> Tensor:
    return x if within is None else x * within[back - 1, :, back:, None]


def _gathered(x: Tensor, weight: Tensor, standing: Tensor, documents: Tensor) -> Tensor:
    """Do the same where documents continue document 0: the token before an answer's first is the prompt's last."""
    mixed = x
    for factors, (place, there) in zip(weight, sources(standing, documents, len(weight)), strict=True):
        mixed = mixed + x.gather(1, place[..., None].expand_as(x)) * there[..., None] * factors
    return mixed


def sources(
    standing: Int[Tensor, "batch time"], documents: Int[Tensor, "batch time"], backs: int
) -> list[tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]]:
    """Return where the tokens 1, 2, ... `backs` before each lie in its row, and whether there is one.

    Documents continue document 0, the prompt.
    """
    prompt = (documents == 0).sum(dim=1, keepdim=True)
    index = torch.arange(documents.shape[1], device=documents.device)
    start = index - torch.where(documents == 0, standing, standing - prompt)  # of each token's own document
    found = []
    for back in range(1, backs + 1):
        place = torch.where((index - back < start) & (documents != 0), standing - back, index - back)
        found.append((place.clamp(min=0), standing >= back))
    return found
