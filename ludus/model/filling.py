"""A model without content is filled with weights as they come out of files, in whatever order they lie there.

Each weight is copied once, into the dtype and onto the device asked for. Where the caller has something to make of the
linear layers, such as quantised ones, each is handed over as soon as it is complete, so that no more than one place of
a file is held as it was.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ludus.base.errors import CheckpointError
from ludus.model.layout import Place
from ludus.model.stored import give_back, spread
from ludus.model.transformer import Transformer

Made = Callable[[str, nn.Linear], nn.Module]
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


class Filling:
    """A model on its way from the meta device; `dtype` None keeps what is stored."""

    def __init__(
        self, model: Transformer, dtype: torch.dtype | None, device: torch.device | str, linear: Made | None
    ) -> None:
        self.model, self.dtype, self.device, self.linear = model, dtype, device, linear
        self.wanted = lasting(model)
        self.filled: set[str] = set()

    def take(self, folder: Path, place: Place, stored: Tensor) -> None:
        """Put what lies at a place where it belongs.

        Raises:
            CheckpointError: it has another shape than the model's, or is no matrix of plain numbers.
        """
        shapes = [self.wanted[name].shape for name in place.sources]
        asked = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()
        asked = asked[::-1] if place.transposed else asked
        if stored.shape != asked:
            raise CheckpointError(
                f"{folder} has {place.foreign} of shape {tuple(stored.shape)}, its config.json asks for {asked}"
            )
        if stored.dtype not in FLOATS:
            kind = str(stored.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{folder} has {place.foreign} as {kind}; ludus reads floats of 16 to 64 bits and quantises them itself"
            )
        # Copies: on mapped memory, results would depend on where in the file a weight lies.
        targets = [self._room(name, stored.dtype) for name in place.sources]
        spread(stored, targets, transposed=place.transposed)
        for name, target in zip(place.sources, targets, strict=True):
            self._put(name, target)
        del targets, target  # what is handed over must be free once nobody wants it
        if self.linear is not None:
            for module in dict.fromkeys(name.rpartition(".")[0] for name in place.sources):
                self._hand_over(module)

    def finish(self) -> Transformer:
        """Return the model, once nothing is missing: what is tied is tied, and counters that no file holds are zero."""
        if self.model.shape.tied:
            self.model.lm_head.weight = self.model.embed_tokens.weight
        if (stored := self.model.embed_tokens.weight.dtype) in (torch.bfloat16, torch.float16):
            self.model.precision = stored  # norms are float32, and products need one dtype
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:
                    setattr(module, name, torch.zeros_like(buffer, device=self.device))
        return self.model

    def _room(self, name: str, stored: torch.dtype) -> Tensor:
        like = self.wanted[name]
        dtype = (self.dtype or stored) if isinstance(like, nn.Parameter) else like.dtype
        return torch.empty(like.shape, dtype=dtype, device=self.device)

    def _put(self, name: str, tensor: Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        lasting_buffer = not isinstance(self.wanted[name], nn.Parameter)
        setattr(self.model.get_submodule(path), leaf, tensor if lasting_buffer else nn.Parameter(tensor))
        self.filled.add(name)

    def _hand_over(self, name: str) -> None:
        """Let the caller make something of a linear layer of the blocks, as soon as all of it is there."""
        layer = self.model.get_submodule(name)
        if self.linear is None or not name.startswith("layers.") or type(layer) is not nn.Linear:
            return
        if not any(weight.is_meta for weight in layer.parameters()):
            self.model.set_submodule(name, self.linear(name, layer))
            del layer
            give_back()


def lasting(model: Transformer) -> Mapping[str, Tensor]:
    """Return weights and lasting buffers, a tied head left out."""
    tensors = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in tensors.items() if not (model.shape.tied and name == "lm_head.weight")}
