"""Modules that are trained whole beside an adapter: an embedding, a head, a norm (PEFT's `modules_to_save`).

The frozen original stays, so that one can look past the training. An embedding and a head that are one tensor learn as
one: whoever names either trains the copy that both share.
"""

import copy
from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.func import functional_call

from ludus.base.errors import ConfigError, nearest
from ludus.model.transformer import Transformer

EMBEDDING, HEAD = "embed_tokens", "lm_head"


class Whole(nn.Module):
    """What stands in place of a module that is trained: the frozen original and a copy that learns, in float32."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.copy = copy.deepcopy(base).float().requires_grad_(True)

    @property
    def weight(self) -> Tensor:
        """The trained weight."""
        return self.copy.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The trained bias."""
        return getattr(self.copy, "bias", None)  # type: ignore[return-value]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute what the copy computes, in the dtype of the original."""
        dtype = getattr(self.base, "weight", self.weight).dtype
        if dtype == self.weight.dtype:
            return self.copy(*inputs)
        narrow = {name: parameter.to(dtype) for name, parameter in self.copy.named_parameters()}
        return functional_call(self.copy, narrow, inputs)


def whole(model: Transformer, names: Sequence[str], *, shared: bool = True) -> Transformer:
    """Train the modules of those names whole, in place; the rest of the model stays as frozen as it is.

    A name is the last part of a module's name, or of one around it: `embed_tokens`, `norm`, `layers.1.mlp`. Where
    embedding and head are one tensor, they share one trained copy, unless they are not to be `shared`.

    Raises:
        ConfigError: a name is none of the model's modules, or one that cannot be trained whole.
    """
    chosen = _chosen(model, names)
    tied = model.shape.tied and shared
    if tied and chosen & {EMBEDDING, HEAD}:
        chosen |= {EMBEDDING, HEAD}
    for name in sorted(chosen):
        module = model.get_submodule(name)
        if not isinstance(module, Whole):
            put_module(model, name, Whole(module).train(module.training))
    if tied and EMBEDDING in chosen:
        model.lm_head.copy.weight = model.embed_tokens.weight  # type: ignore[union-attr]
    return model


def wholes(model: nn.Module) -> dict[str, Whole]:
    """Return what is trained whole, by the name of the module it stands for."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Whole)}


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where the one of that name was."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _chosen(model: Transformer, names: Iterable[str]) -> set[str]:
    plain, taken = _leaves(model)
    chosen = set()
    for target in names:
        found = {name for name in plain if _within(name, target)}
        if not found:
            if any(_within(name, target) for name in taken):
                raise ConfigError(f"{target} is quantised or under the adapter; it cannot be trained whole as well")
            known = sorted({name.rpartition(".")[2] for name in plain})
            near = nearest(target, known)
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"{target}, to be trained whole, is no module; known are {', '.join(known)}{hint}")
        chosen |= found
    return chosen


def _leaves(model: nn.Module) -> tuple[list[str], list[str]]:
    """Name the modules that have a weight of their own, and those under surgery or quantised, apart."""
    plain, taken = [], []
    inside = "."  # parents come right before their children
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        if hasattr(module, "merged") or hasattr(module, "dense"):
            taken.append(name)
            inside = f"{name}."
        elif isinstance(getattr(module, "weight", None), nn.Parameter):
            plain.append(name)
            inside = f"{name}."
    return plain, taken


def _within(name: str, target: str) -> bool:
    return bool(target) and f".{target}." in f".{name}."
