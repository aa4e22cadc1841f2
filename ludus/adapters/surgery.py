"""Surgery from outside: put adapters in place of a model's linear layers, look past them, fold them in.

The transformer never learns what was done to it. An adapter is a module that holds the frozen layer it stands for as
`base`; what it adds is its own business. Optimizer, checkpoint and clipping read `requires_grad`, which is left right.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from ludus.base.errors import ConfigError, nearest
from ludus.model.transformer import Transformer

HEAD = "lm_head"


class Adapter(nn.Module):
    """What stands in place of a linear layer."""

    base: nn.Linear

    def merged(self) -> Tensor:
        """Return the weight of the one linear layer that computes the same."""
        raise NotImplementedError


def replace(model: Transformer, targets: str | Sequence[str], make: Callable[[nn.Linear], Adapter]) -> Transformer:
    """Freeze the model, in place, and put `make(layer)` where each targeted linear layer was.

    `targets` is "all-linear", all but the head, or the last parts of layers' names, such as `["q_proj", "v_proj"]`.

    Raises:
        ConfigError: a target is no linear layer of the model, or is a head that is tied to the embedding.
    """
    if any(adapters(model)):
        raise ValueError("the model has adapters already; merge them first")
    chosen = _targeted(model, targets)
    model.requires_grad_(False)
    for name in chosen:
        layer = model.get_submodule(name)
        _put(model, name, make(layer).train(layer.training))  # type: ignore[arg-type]
    return model


def adapters(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """Yield each adapter with the name of the layer it stands for."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Adapter))


def switched_off(model: Transformer) -> Transformer:
    """Return the model without its adapters: a view that shares every weight, so it costs no memory.

    The reference of a policy under an adapter. Its mode (training or not) is its own; it stays valid while the model
    trains, but not when the adapters are merged.
    """
    if not any(adapters(model)):
        raise ValueError("the model has no adapter; its reference must be a frozen copy")
    view = _without(model)
    assert isinstance(view, Transformer)
    return view


def merge(model: Transformer) -> Transformer:
    """Fold every adapter into its layer, in place; then all weights can be trained again."""
    for name, adapter in list(adapters(model)):
        adapter.base.weight.data = adapter.merged().detach()
        _put(model, name, adapter.base)
    return model.requires_grad_(True)


def _targeted(model: Transformer, targets: str | Sequence[str]) -> list[str]:
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if targets == "all-linear":
        return [name for name in linears if name != HEAD]
    kinds = {name.rpartition(".")[2] for name in linears}
    if not targets:
        known = ", ".join(sorted(kinds))
        raise ConfigError(f"the adapter has no targets, so nothing could learn; name some of {known}")
    for target in targets:
        if not any(_ends_with(name, target) for name in linears):
            near = nearest(target, kinds)
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"adapter target {target} is no linear layer; known are {', '.join(sorted(kinds))}{hint}")
    chosen = [name for name in linears if any(_ends_with(name, target) for target in targets)]
    if HEAD in chosen and model.shape.tied:
        raise ConfigError(f"adapter target {HEAD} is tied to the embedding and cannot change alone; leave it out")
    return chosen


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _without(module: nn.Module) -> nn.Module:
    """Copy the tree of modules, not their weights, with each adapter replaced by its base."""
    if isinstance(module, Adapter):
        return module.base
    view = copy.copy(module)
    view.__dict__.pop("forward", None)  # other surgery, such as recomputation, is bound to the original
    view._modules = {name: child and _without(child) for name, child in module._modules.items()}
    return view
