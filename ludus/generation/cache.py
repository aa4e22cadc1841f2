"""The KV cache: keys and values of every layer for rows that are padded on the left and grow to the right.

Beside them it keeps the last inputs of each convolution, which reaches a few tokens back.
"""

import torch
from jaxtyping import Int, Num
from torch import Tensor

from ludus.base.errors import ConfigError
from ludus.model.settings import Architecture


class KVCache:
    """Room for `capacity` tokens a row, allocated at once."""

    def __init__(self, shape: Architecture, starts: Int[Tensor, " batch"], capacity: int, dtype: torch.dtype) -> None:
        size = (shape.layers, len(starts), shape.kv_heads, capacity, shape.head_dim)
        self.keys = torch.empty(size, dtype=dtype, device=starts.device)
        self.values = torch.empty(size, dtype=dtype, device=starts.device)
        self.inputs: dict[str, Tensor] = {}  # of each convolution: (batch, taps, channels)
        self.shape = shape
        self.length = 0
        self._start_at(starts)

    def _start_at(self, starts: Tensor) -> None:
        self.starts = starts  # index of each row's first real token; what lies before is padding
        self.least, self.padded = int(starts.min()), bool((starts != 0).any())

    def documents(self, time: int) -> Int[Tensor, "batch span"] | None:
        """Return 0 for each real token up to the next `time`, -1 for padding; None where no row is padded."""
        if not self.padded:
            return None
        return (self._index(time) >= self.starts[:, None]).long() - 1

    def standing(self, time: int) -> Int[Tensor, "batch span"]:
        """Count positions from each row's first real token, up to and with the next `time`; padding gets 0.

        Raises:
            ConfigError: the text would be longer than the positions that the model has learned.
        """
        longest = self.length + time - self.least
        if self.shape.position == "learned" and longest > self.shape.context:
            raise ConfigError(
                f"a text of {longest} tokens, and the model has learned {self.shape.context} positions; "
                "give it a shorter prompt or ask for fewer tokens"
            )
        index = self._index(time)[None]
        return (index - self.starts[:, None]).clamp(min=0) if self.padded else index

    def positions(self, time: int) -> Int[Tensor, "batch time"]:
        """Return the positions of the next `time` tokens alone."""
        return self.standing(time)[:, self.length :].expand(len(self.starts), -1)

    def _index(self, time: int) -> Int[Tensor, " span"]:
        return torch.arange(self.length + time, device=self.starts.device)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new keys and values, (batch, kv_heads, time, head_dim), and return all of the layer's."""
        stop = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : stop] = keys
        self.values[layer, :, :, self.length : stop] = values
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]

    def recall(
        self, site: str, inputs: Num[Tensor, "batch time channels"], taps: int
    ) -> Num[Tensor, "batch {taps} channels"]:
        """Return the `taps` inputs that a site, such as a convolution, had last, and keep the new; at first, zeros.

        The oldest comes first.
        """
        kept = self.inputs.get(site)
        if kept is None:
            kept = inputs.new_zeros(inputs.shape[0], taps, inputs.shape[2])
        self.inputs[site] = torch.cat((kept, inputs), dim=1)[:, -taps:]
        return kept

    def reserve(self, tokens: int) -> None:
        """Make room for so many more tokens a row; costs nothing while no token is kept."""
        self.keys, self.values = (self._widened(kept, tokens) for kept in (self.keys, self.values))

    def _widened(self, kept: Tensor, tokens: int) -> Tensor:
        *size, capacity, head_dim = kept.shape
        wider = torch.empty((*size, capacity + tokens, head_dim), dtype=kept.dtype, device=kept.device)
        wider[..., : self.length, :] = kept[..., : self.length, :]
        return wider

    def advance(self, time: int) -> None:
        """Count `time` tokens as kept."""
        self.length += time

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Keep the given rows only, in that order; a row may be named several times, to share its prefix."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.inputs = {site: kept[rows] for site, kept in self.inputs.items()}
        self._start_at(self.starts[rows])
