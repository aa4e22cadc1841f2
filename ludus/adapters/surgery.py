"""Surgery from outside: put adapters in place of a model's linear layers, look past them, fold them in.

The transformer never learns what was done to it. An adapter is a module that holds the frozen layer it stands for as
`base`; what it adds is its own business. Optimizer, checkpoint and clipping read `requires_grad`, which is left right.
Modules that are trained whole live in `whole.py`.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ludus.adapters.peft_names import homes
from ludus.adapters.quantised import Quantised
from ludus.adapters.virtual import UNMERGEABLE, remove, virtual_of
from ludus.adapters.whole import Whole, put_module, wholes
from ludus.adapters.whole import whole as whole
from ludus.base.errors import ConfigError, nearest
from ludus.model.transformer import Transformer

LINEAR: tuple[type[nn.Module], ...] = (nn.Linear, Quantised)


class Part(NamedTuple):
    """A trainable tensor of an adapter.

    `suffix` is PEFT's name for it, `attribute` ours, for `get_parameter`; `rows` tells whether its first dimension runs
    over the layer's outputs.
    """

    suffix: str
    attribute: str
    rows: bool


class Adapter(nn.Module):
    """What stands in place of a linear layer, which may be a quantised one."""

    base: nn.Module

    def merged(self) -> Tensor:
        """Return the weight of the one linear layer that computes the same, in float32."""
        raise NotImplementedError

    def merged_bias(self) -> Tensor | None:
        """Return the bias of that layer."""
        return self.base.bias  # type: ignore[return-value]

    def parts(self) -> tuple[Part, ...]:
        """Return what it learns, as files name it."""
        return ()

    def settle(self, row: int) -> None:
        """Learn that this layer's outputs begin at a row of a matrix that it shares with others on disk."""


Make = Callable[[nn.Module], Adapter]


def dense_weight(layer: nn.Module) -> Tensor:
    """Return the weight of a linear layer, quantised or not, in float32: (outputs, inputs)."""
    if isinstance(layer, nn.Linear):
        return layer.weight.detach().float()
    return layer.dense(torch.float32)  # type: ignore[operator]


def device_of(layer: nn.Module) -> torch.device:
    """Return where a layer's weights are."""
    return next(chain(layer.parameters(), layer.buffers())).device


def fitting(x: Tensor, weight: Tensor) -> Tensor:
    """Return x in the dtype of the weight that it will be multiplied with; autocast sees to that by itself."""
    return x if x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


def replace(model: Transformer, targets: str | Sequence[str], make: Make) -> Transformer:
    """Freeze the model, in place, and put `make(layer)` where each targeted linear layer was.

    `targets` is "all-linear", those of the blocks, or the last parts of layers' names, such as `["q_proj", "v_proj"]`.

    Raises:
        ConfigError: a target is no linear layer of the model.
    """
    return put(model, dict.fromkeys(targeted(model, targets), make))


def put(model: Transformer, makers: Mapping[str, Make]) -> Transformer:
    """Freeze the model, in place, and put what each maker makes where the linear layer of that name was.

    Adapters of layers that lie in one matrix on disk share what does not run over its outputs.
    """
    if is_adapted(model):
        raise ValueError("the model has adapters already; merge them first")
    model.requires_grad_(False)
    for name, make in makers.items():
        layer = model.get_submodule(name)
        put_module(model, name, make(layer).train(layer.training))
    for home in homes(model.shape, makers):
        if len(home.sources) > 1:
            _share(model, home.sources)
    return model


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """Return every linear layer by name, as it was before any surgery."""
    found: dict[str, nn.Module] = {}
    inside = "."  # parents come right before their children
    for name, module in model.named_modules():
        if not name.startswith(inside) and isinstance(module, (Adapter, Whole, *LINEAR)):
            inside = f"{name}."
            if not isinstance(module, Whole):
                found[name] = module.base if isinstance(module, Adapter) else module
    return found


def adapters(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """Yield each adapter with the name of the layer it stands for."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Adapter))


def stands(model: nn.Module) -> Iterator[tuple[str, "Adapter | Whole"]]:
    """Yield all that stands in place of a module, adapters and modules trained whole, with the name of that module."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, (Adapter, Whole)))


def is_adapted(model: nn.Module) -> bool:
    """Tell whether any surgery was done on the model that `switched_off` looks past."""
    return any(stands(model)) or virtual_of(model) is not None


def switched_off(model: Transformer) -> Transformer:
    """Return the model without its adapters: a view that shares every weight, so it costs no memory.

    The reference of a policy under an adapter. Its mode (training or not) is its own; it stays valid while the model
    trains, but not when the adapters are merged.
    """
    if not is_adapted(model):
        raise ValueError("the model has no adapter; its reference must be a frozen copy")
    return without(model)


def without(model: Transformer) -> Transformer:
    """Return a view of the model as it was before any surgery, which may be operated on by itself."""
    view = _without(model)
    assert isinstance(view, Transformer)
    return remove(view)


def merge(model: Transformer, dtype: torch.dtype | None = None) -> Transformer:
    """Fold every adapter into its layer, in place; then all weights can be trained again.

    Quantised layers become dense ones of what they stood for. `dtype` is that of all weights then; without it they keep
    their own, and what was quantised gets that of the embedding. Where head and embedding were one tensor and only one
    of them learned, they are two from then on.

    Raises:
        ConfigError: what was learned is no weight of the model, such as virtual tokens.
    """
    if virtual_of(model) is not None:
        raise ConfigError(UNMERGEABLE)
    for name, module in wholes(model).items():
        learned, old = module.copy, module.base
        put_module(model, name, learned if dtype else learned.to(next(old.parameters()).dtype))
    for name, layer in linears(model).items():
        module = model.get_submodule(name)
        if isinstance(module, Adapter):
            weight, bias = module.merged().detach(), module.merged_bias()
        elif not isinstance(layer, nn.Linear):
            weight, bias = dense_weight(layer), layer.bias
        else:
            continue
        put_module(model, name, _dense(model, layer, weight, bias, dtype))  # type: ignore[arg-type]
    for parameter in model.parameters() if dtype else ():
        parameter.data = parameter.data.to(dtype)
    if model.shape.tied and model.lm_head.weight is not model.embed_tokens.weight:
        model.shape = dataclasses.replace(model.shape, tied=False)
    return model.requires_grad_(True)


def targeted(model: Transformer, targets: str | Sequence[str]) -> list[str]:
    """Return the names of the linear layers that are meant.

    Raises:
        ConfigError: a target is no linear layer of the model.
    """
    known = list(linears(model))
    if targets == "all-linear":
        return [name for name in known if name.startswith("layers.")]
    kinds = {name.rpartition(".")[2] for name in known}
    if not targets:
        raise ConfigError(
            f"the adapter has no targets, so nothing could learn; name some of {', '.join(sorted(kinds))}"
        )
    for target in targets:
        if not any(ends_with(name, target) for name in known):
            near = nearest(target, kinds)
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"adapter target {target} is no linear layer; known are {', '.join(sorted(kinds))}{hint}")
    chosen = [name for name in known if any(ends_with(name, target) for target in targets)]
    return chosen


def ends_with(name: str, target: str) -> bool:
    """Tell whether a name is the target, or ends with it after a dot."""
    return name == target or name.endswith(f".{target}")


def _share(model: nn.Module, names: Sequence[str]) -> None:
    """Let the adapters of layers that lie in one matrix share what does not run over its outputs."""
    row, first = 0, None
    for name in names:
        adapter = model.get_submodule(name)
        outputs: int = (adapter.base if isinstance(adapter, Adapter) else adapter).out_features  # type: ignore[assignment]
        if isinstance(adapter, Adapter):
            adapter.settle(row)
            first = first or adapter
            for part in adapter.parts() if adapter is not first else ():
                if not part.rows:
                    owner, _, last = part.attribute.rpartition(".")
                    setattr(adapter.get_submodule(owner), last, first.get_parameter(part.attribute))
        row += outputs


def _dense(
    model: Transformer, layer: nn.Module, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None
) -> nn.Linear:
    """Return a plain layer; a plain one that is there is kept, so that what shares its weight goes on doing so."""
    kept = layer.weight.dtype if isinstance(layer, nn.Linear) else model.embed_tokens.weight.dtype
    if not isinstance(layer, nn.Linear) or layer.weight is model.embed_tokens.weight:  # a tied head changes alone
        outputs, inputs = weight.shape
        dense = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
        layer = dense.to_empty(device=weight.device).train(layer.training)
    layer.weight.data = weight.to(dtype or kept)
    if bias is not None:
        layer.bias.data = bias.detach().to(dtype or kept)
    return layer


def _without(module: nn.Module) -> nn.Module:
    """Copy the tree of modules, not their weights, with each adapter replaced by its base."""
    if isinstance(module, (Adapter, Whole)):
        return module.base
    view = copy.copy(module)
    view.__dict__.pop("forward", None)  # other surgery, such as recomputation, is bound to the original
    view._modules = {name: child and _without(child) for name, child in module._modules.items()}
    return view
