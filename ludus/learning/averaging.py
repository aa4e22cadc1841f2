"""Averages of the weights over training: they are better than the last ones, and show it before the rate has fallen.

`Average` follows a model step by step: exponentially, or over the last few. `average_checkpoints` does it afterwards,
from what is on disk. Only weights that train are averaged, in float32 where they are smaller. What is done with the
average is the hooks' business.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ludus.base.errors import CheckpointError
from ludus.learning import checkpoints


class Average:
    """The average of a model's trained weights: exponential with `decay`, or uniform over the last `last_steps`.

    With `decay` in [0, 1) the start is corrected as Adam's moments are, so that the first update is the weights
    themselves; it costs one copy of the weights. With `last_steps` (latest weight averaging, arXiv 2209.14981) one
    looks at every `every`-th update, and it costs `last_steps` copies.
    """

    def __init__(
        self, model: nn.Module, *, decay: float | None = None, last_steps: int | None = None, every: int = 1
    ) -> None:
        if (decay is None) == (last_steps is None):
            raise ValueError("give either decay or last_steps")
        if (decay is not None and not 0 <= decay < 1) or (last_steps is not None and last_steps < 1) or every < 1:
            raise ValueError(
                f"decay={decay}, last_steps={last_steps}, every={every}: decay is in [0, 1), counts are >= 1"
            )
        self.decay, self.last_steps, self.every = decay, last_steps, every
        self.updates = 0
        self._parameters = _trained(model)
        self._kept: list[list[Tensor]] = []  # copies of the weights: one, or the last few in no order

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's weights as they are now into the average."""
        self.updates += 1
        if self.updates % self.every:
            return
        looks = self.updates // self.every
        now = list(self._parameters.values())
        if self.decay is None:
            place = (looks - 1) % (self.last_steps or 1)
            if place == len(self._kept):
                self._kept.append([_wide(one).clone() for one in now])
            else:
                torch._foreach_copy_(self._kept[place], now)  # type: ignore[attr-defined]
        elif not self._kept:
            self._kept = [[_wide(one).clone() for one in now]]
        else:
            weight = (1 - self.decay) / (1 - self.decay**looks)
            torch._foreach_lerp_(self._kept[0], [_wide(one) for one in now], weight)  # type: ignore[attr-defined]

    @torch.no_grad()
    def values(self) -> dict[str, Tensor]:
        """Return the average by parameter name, in the dtype it is kept in; {} before the first look."""
        return {name: one.clone() for name, one in self._mean().items()}

    def _mean(self) -> dict[str, Tensor]:
        """Return the average; a single copy as it is, not to be written to."""
        if not self._kept:
            return {}
        mean = self._kept[0]
        for more in self._kept[1:]:
            mean = torch._foreach_add(mean, more)  # type: ignore[attr-defined]
        if len(self._kept) > 1:
            mean = torch._foreach_div(mean, float(len(self._kept)))  # type: ignore[attr-defined]
        return dict(zip(self._parameters, mean, strict=True))

    @contextmanager
    def weights(self, model: nn.Module) -> Iterator[None]:
        """Put the average into `model` for the block, in place; after it the weights are what they were, to the bit.

        Before the first look the model keeps its own weights.
        """
        parameters, average = _trained(model), self._mean()
        mine = [parameters[name] for name in average]
        own = [one.detach().clone() for one in mine]
        try:
            _copy(mine, list(average.values()))
            yield
        finally:
            _copy(mine, own)

    def state_dict(self) -> dict[str, Any]:
        """Return what has been averaged so far."""
        return {"updates": self.updates, "kept": [dict(zip(self._parameters, one, strict=True)) for one in self._kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back.

        Raises:
            CheckpointError: it is the average of another model's weights, or of more copies than are kept here.
        """
        kept = state["kept"]
        if any(one.keys() != self._parameters.keys() for one in kept) or len(kept) > (self.last_steps or 1):
            raise CheckpointError(
                f"the checkpoint's average holds {len(kept)} copies of {len(kept[0])} weights, this stage averages "
                f"{self.last_steps or 1} of {len(self._parameters)}: set the average back to what it was"
            )
        self.updates = state["updates"]
        self._kept = [
            [one[name].to(parameter.device, copy=True) for name, parameter in self._parameters.items()] for one in kept
        ]


def average_checkpoints(folder: Path | str, *, last: int) -> dict[str, Tensor]:
    """Return the uniform average of the trained weights in the `last` newest checkpoints of `folder`, by name.

    Raises:
        CheckpointError: there are fewer, one is damaged, or they are of different models.
    """
    folder = Path(folder)
    if last < 1:
        raise ValueError(f"last is {last}; at least one checkpoint is needed")
    found = sorted(path for path in folder.glob("step-*") if checkpoints.STEP_FOLDER.fullmatch(path.name))
    newest = sorted(found, key=checkpoints.step_of)[-last:]
    if len(newest) < last:
        raise CheckpointError(f"{folder} holds {len(found)} checkpoints, not {last}; average fewer, or keep more")
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in newest:
        weights = checkpoints.load(path)[1]["model"]
        if sums and {name: one.shape for name, one in weights.items()} != {
            name: one.shape for name, one in sums.items()
        }:
            raise CheckpointError(f"{path} holds other weights than {newest[0].name}; average checkpoints of one model")
        dtypes = {name: one.dtype for name, one in weights.items()}
        sums = {name: one.double() + sums.get(name, 0.0) for name, one in weights.items()}
    return {name: (one / last).to(dtypes[name]) for name, one in sums.items()}


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def _wide(parameter: Tensor) -> Tensor:
    """Return at least float32: in bfloat16 a slow average would stand still."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))


@torch.no_grad()
def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    if into:
        torch._foreach_copy_(into, values)  # type: ignore[attr-defined]
