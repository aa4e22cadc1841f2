"""What a low-rank change may start from other than nothing: PiSSA and LoftQ.

Both take the largest singular values of a matrix. PiSSA's is the frozen weight: the change starts there and counts from
there, so the weight under it stays what it was, and so does what the model says (in the paper the start is taken out of
the weight instead, which is the same sum). LoftQ's is what quantising the weight lost.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ludus.adapters.lora import Lora
from ludus.adapters.settings import LoraSettings
from ludus.adapters.surgery import Adapter, adapters, dense_weight, put_module, replace, targeted
from ludus.base.errors import ConfigError
from ludus.base.seeds import derive_seed
from ludus.model.transformer import Transformer


def principal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A and B with scale B A the best approximation of a weight (outputs, inputs) of that rank.

    The singular values are shared evenly (PiSSA, arXiv 2404.02948 eq. 2-3). Each row of A has its largest entry
    positive, so that signs do not hang on the library.
    """
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    left, roots, right = left[:, :rank], (values[:rank] / scale).sqrt(), right[:rank]
    signs = right.gather(1, right.abs().argmax(dim=1, keepdim=True)).sign()
    return roots[:, None] * right * signs, left * roots * signs.T


@torch.no_grad()
def pissa(model: Transformer) -> Transformer:
    """Start every LoRA or DoRA adapter at the largest singular values of its weight, in place.

    Layers that lie in one matrix on disk are decomposed together. The model computes what it did before.

    Raises:
        ConfigError: the rank is more than a layer has.
    """
    return _begin(model, dense_weight, counted=True)


@torch.no_grad()
def loftq(
    model: Transformer,
    settings: LoraSettings,
    kind: type[Lora],
    *,
    seed: int,
    quantise: Callable[[nn.Linear], nn.Module] | None = None,
) -> Transformer:
    """Quantise the layers to be adapted, in place, and start their adapters at what that lost (arXiv 2310.08659).

    This is one round of algorithm 1. More rounds would quantise something other than the weights, and the adapter would
    fit a base that nobody has. `quantise` makes the frozen layer, nf4 unless given.

    Raises:
        ConfigError: a layer is quantised already, so what that lost is gone.
    """
    lost: dict[nn.Module, Tensor] = {}
    for name in targeted(model, settings.targets):
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise ConfigError(
                f"{name} is quantised, and initialise=loftq needs the weights from before; load the model as it is "
                "stored, and LoftQ will quantise it"
            )
        frozen = (quantise or _nf4)(layer)
        lost[frozen] = dense_weight(layer) - dense_weight(frozen)
        put_module(model, name, frozen)
    generator = torch.Generator().manual_seed(derive_seed(seed, "lora"))
    replace(model, settings.targets, lambda layer: kind(layer, settings, generator))
    return _begin(model, lost.__getitem__, counted=False)


def as_saved(adapter: Adapter) -> Adapter:
    """Return the adapter that a file holds, on the weights as they were: one that counts from its start gets both.

    Its rank doubles: B A - B0 A0 is one product of twice the rank, which every reader of LoRA computes.
    """
    if not isinstance(adapter, Lora) or adapter.start_A is None or adapter.start_B is None:
        return adapter
    rank = 2 * adapter.rank
    alpha = adapter.scale * (rank**0.5 if adapter.rank_stabilised else rank)
    settings = LoraSettings(rank=rank, alpha=alpha, rank_stabilised=adapter.rank_stabilised, dropout=adapter.dropout.p)
    found = type(adapter)(adapter.base, settings, torch.Generator())
    with torch.no_grad():
        found.lora_A.weight.copy_(torch.cat((adapter.lora_A.weight, adapter.start_A)))
        found.lora_B.weight.copy_(torch.cat((adapter.lora_B.weight, -adapter.start_B), dim=1))
        for part in adapter.parts()[2:]:  # what is neither factor
            found.get_parameter(part.attribute).copy_(adapter.get_parameter(part.attribute))
    return found.train(adapter.training)


def _begin(model: Transformer, of: Callable[[Any], Tensor], *, counted: bool) -> Transformer:
    """Start adapters at the largest singular values of `of(base)`, those that share A together."""
    groups: dict[Tensor, list[Lora]] = {}
    for _, adapter in adapters(model):
        if isinstance(adapter, Lora):
            groups.setdefault(adapter.lora_A.weight, []).append(adapter)
    for group in groups.values():
        stacked = torch.cat([of(adapter.base) for adapter in group])
        _check(group, stacked)
        A, B = principal(stacked, group[0].rank, group[0].scale)  # noqa: N806 - the field's names
        sizes = [adapter.lora_B.out_features for adapter in group]
        for adapter, rows in zip(group, B.split(sizes), strict=True):
            adapter.begin(A, rows, counted=counted)
    return model


def _check(group: Iterable[Lora], weight: Tensor) -> None:
    rank = next(iter(group)).rank
    if rank > min(weight.shape):
        rows, columns = weight.shape
        raise ConfigError(f"adapter rank {rank} is more than a layer of {rows} x {columns} has; lower adapter.rank")


def _nf4(layer: nn.Linear) -> nn.Module:
    from ludus.adapters.quantised import quantise  # tables of its own, which few need

    return quantise(layer, "nf4")
