"""Several adapters on one base: all in memory, one of them in use, switched without touching a weight.

A shelf holds what each adapter puts in place of the model's modules. They share the frozen layers, so an adapter costs
no more than what it learned.
"""

from pathlib import Path

from torch import nn

from ludus.adapters import files
from ludus.adapters.surgery import is_adapted, stands, without
from ludus.adapters.virtual import Virtual, precede, remove, virtual_of
from ludus.adapters.whole import put_module
from ludus.base.errors import ConfigError, nearest
from ludus.model.transformer import Transformer


class Shelf:
    """The adapters of a model by name; `current` is the one in use, None being the bare model."""

    def __init__(self, model: Transformer) -> None:
        if is_adapted(model):
            raise ValueError("the model has an adapter already; put that on the shelf from its folder")
        self.model, self.current = model.requires_grad_(False), None
        self._modules: dict[str, dict[str, nn.Module]] = {}
        self._virtual: dict[str, Virtual] = {}

    @property
    def names(self) -> list[str]:
        """The adapters there are, in the order they came."""
        return list(self._modules)

    def add(self, name: str, folder: Path | str) -> None:
        """Load an adapter beside the others; the one in use stays in use. A name that is taken gets the new adapter.

        Raises:
            CheckpointError: the folder holds no adapter, or none for this model.
            ConfigError: it was trained with more tokens than the model has.
        """
        current = self.current
        self.use(None)
        try:
            view = without(self.model)
            for module in view.modules():  # what is changed in it, such as the number of tokens, is its own
                module._parameters = dict(module._parameters)
            files.load(view, folder)
            if view.shape != self.model.shape:
                raise ConfigError(
                    f"the adapter {name} was trained with {view.shape.vocabulary:,} tokens and the model has "
                    f"{self.model.shape.vocabulary:,}; put on one shelf what was trained with the same"
                )
            self._modules[name] = dict(stands(view))
            self._virtual.pop(name, None)
            if (virtual := virtual_of(view)) is not None:
                self._virtual[name] = virtual
        finally:
            self.use(current)

    def use(self, name: str | None) -> Transformer:
        """Put an adapter on the model, in place, or with None take it off; return the model.

        Raises:
            ConfigError: there is no adapter of that name.
        """
        if name is not None and name not in self._modules:
            near = nearest(name, self.names)
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"there is no adapter {name}; known are {', '.join(self.names) or 'none'}{hint}")
        for place, module in list(stands(self.model)):
            put_module(self.model, place, module.base)  # type: ignore[arg-type]
        remove(self.model)
        self.current = name
        if name is None:
            return self.model
        for place, module in self._modules[name].items():
            put_module(self.model, place, module.train(self.model.training))
        if name in self._virtual:
            precede(self.model, self._virtual[name])
        return self.model
