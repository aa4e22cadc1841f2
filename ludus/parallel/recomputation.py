"""Time for memory: forget a layer's activations and compute them again in the backward pass (arXiv 1604.06174)."""

import functools
from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute(model: nn.Module, every: int = 1) -> nn.Module:
    """Make every `every`-th layer of `model.layers` recompute its activations while training; losses stay identical."""
    for index, layer in enumerate(model.layers):  # type: ignore[arg-type]
        if index % every == 0:
            layer.forward = functools.partial(_recomputed, layer, layer.forward)
    return model


def _recomputed(layer: nn.Module, forward: Callable[..., Tensor], *arguments: object) -> Tensor:
    if layer.training:
        return checkpoint(forward, *arguments, use_reentrant=False)  # type: ignore[return-value]
    return forward(*arguments)
