"""Merge an adapter and prove it: how far the merged model's logits are from the adapter's, on given tokens.

The merge is compared in float32, and again once its weights are rounded where they are to be saved narrower: the first
says whether the algebra is right, the second what the format costs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ludus.adapters.files import quantised_as
from ludus.adapters.identity import weight_hashes
from ludus.adapters.surgery import adapters, merge, stands
from ludus.base.errors import CheckpointError
from ludus.model.architecture import Architecture
from ludus.model.transformer import Transformer

FILE = "merge.json"
ROWS, TIME = 4, 64  # of random tokens
Certificate = dict[str, Any]
# Of the largest logit. Float32 loses some of its last digits over the layers. Rounding alone costs models of 2 to 8
# layers with random weights 1 to 2 % in bfloat16, which keeps 8 bits of each.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


@torch.no_grad()
def merge_certificate(
    model: Transformer,
    tokens: Int[Tensor, "batch time"],
    *,
    dtype: torch.dtype | None = None,
    adapter: Path | None = None,
    base: Path | None = None,
) -> Certificate:
    """Merge the adapter of a model, in place, and return how its logits moved; see `refuse` for judging them.

    `dtype` is that of the merged weights, None being the model's own. With their folders, the files of `adapter` and
    `base` are named by hash.

    Raises:
        ConfigError: the adapter cannot be merged.
    """
    kinds = sorted({type(module).__name__.lower() for _, module in stands(model)})
    facts = {
        "kind": " and ".join(kinds),
        "layers": len(list(stands(model))),
        "base_quantised": quantised_as(model)["quantise"],
        "tied_before": model.shape.tied,
    }
    stored = dtype or model.embed_tokens.weight.dtype
    for parameter in model.parameters():  # exact: what is kept narrower was rounded when it was loaded
        parameter.data = parameter.data.float()
    with _evaluating(model):
        for _, module in adapters(model):  # by its formula: one that folds itself would be compared with itself
            if hasattr(module, "spelled_out"):
                vars(module)["forward"] = module.spelled_out
        with torch.enable_grad():  # without a graph others fold, too
            adapted = model(tokens).detach()
        exact = _differences(adapted, merge(model, torch.float32)(tokens))
        for parameter in model.parameters():
            parameter.data = parameter.data.to(stored).float()
        found = exact if stored == torch.float32 else _differences(adapted, model(tokens))
        for parameter in model.parameters():
            parameter.data = parameter.data.to(stored)
    return {
        **facts,
        "tied_after": model.shape.tied,
        "dtype": str(stored).removeprefix("torch."),
        "tokens": tokens.numel(),
        "float32": exact,
        **found,
        "adapter_sha256": None if adapter is None else weight_hashes(adapter),
        "base_sha256": None if base is None else weight_hashes(base),
    }


def refuse(certificate: Certificate) -> None:
    """Raise CheckpointError if the merged model says something else than the adapter did, beyond rounding."""
    checks = {"float32": certificate["float32"], certificate["dtype"]: certificate}
    for dtype, found in checks.items():
        limit = TOLERANCES.get(dtype, TOLERANCES["float32"])
        if not found["relative_difference"] <= limit:
            raise CheckpointError(
                f"the merged model differs from the adapter by {found['largest_difference']:.2g}, which is "
                f"{found['relative_difference']:.2g} of its largest logit in {dtype}, and {limit:g} is allowed; "
                "nothing was written; use the adapter's folder as it is, or another dtype"
            )


def random_tokens(shape: Architecture, *, seed: int = 0) -> Int[Tensor, "batch time"]:
    """Draw rows of tokens to compare on."""
    size = (ROWS, min(TIME, shape.context))
    return torch.randint(shape.vocabulary, size, generator=torch.Generator().manual_seed(seed))


def _differences(before: Tensor, after: Tensor) -> dict[str, float]:
    apart = (before - after).abs()
    return {
        "largest_difference": float(apart.max()),
        "mean_difference": float(apart.mean()),
        "relative_difference": float(apart.max() / before.abs().max()),
        "argmax_agreement": float((before.argmax(-1) == after.argmax(-1)).float().mean()),
    }


@contextmanager
def _evaluating(model: Transformer) -> Iterator[None]:
    """Compute without dropout and in float32."""
    training, precision = model.training, model.precision
    model.eval()
    model.precision = torch.float32
    try:
        yield
    finally:
        model.train(training)
        model.precision = precision
