"""Who may see whom in one forward pass, and where everyone stands.

One rule, `Sight.visible`, says it for every attention backend: a query sees itself and what came before it in its own
document, as far back as the layer's window. Packed documents, padding, a shared prompt and the KV cache are all
documents with positions. A mask is made when the first layer asks for it and shared by all others of its window.
"""

from collections.abc import Callable
from functools import reduce
from operator import and_
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from ludus.model.architecture import Architecture
from ludus.model.positions import Rotation

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (batch, head, query, key) -> may the query see the key


@runtime_checkable
class Cache(Protocol):
    """What the layers ask of a cache; `ludus.generation.cache` has the one we use."""

    length: int  # tokens kept in each row, padding included

    def documents(self, time: int) -> Int[Tensor, "batch span"] | None:
        """0 for each real token up to the next `time`, and -1 for padding; None where no row is padded."""
        ...

    def standing(self, time: int) -> Int[Tensor, "batch span"]:
        """Positions up to and with the next `time` tokens, counted from each row's first real token."""
        ...

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values of a layer and return all of that layer's: (batch, kv_heads, span, head_dim)."""
        ...

    def recall(self, site: str, inputs: Num[Tensor, "batch time channels"], taps: int) -> Tensor:
        """Return the last `taps` inputs of a site, oldest first, and keep the new: (batch, taps, channels)."""
        ...

    def advance(self, time: int) -> None:
        """Count `time` tokens as kept, once every layer has extended."""
        ...


def document_positions(documents: Int[Tensor, "batch time"], *, shared: bool = False) -> Int[Tensor, "batch time"]:
    """Count positions from 0 within each run of equal document numbers; after document 0, where it is `shared`."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    within = index - torch.where(starts, index, 0).cummax(dim=1).values
    if not shared:
        return within
    prefix = (documents == 0).sum(dim=1, keepdim=True)
    return torch.where(documents == 0, within, within + prefix)


class Sight:
    """What is the same for every layer of one forward pass.

    `standing` counts the earlier tokens of each key's document; `documents` is None where each row is one document. The
    queries are the last `time` of the keys: all of them, but with a cache.
    """

    def __init__(
        self,
        shape: Architecture,
        tokens: Int[Tensor, "batch time"],
        *,
        positions: Int[Tensor, "batch time"] | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
        shared: bool = False,
        cache: Cache | None = None,
    ) -> None:
        self.rows, self.time = tokens.shape
        self.span, self.cache, self.shared, self.documents = self.time, cache, shared, documents
        self.reach = None  # of every layer, whatever its window
        if cache is not None:
            self.span = cache.length + self.time
            self.documents, self.standing = cache.documents(self.time), cache.standing(self.time)
            # Positions that only turn are continued beyond the context by looking back no further than it.
            self.reach = shape.context if self.span > shape.context else None
        elif documents is not None:
            self.standing = document_positions(documents, shared=shared)
        else:
            self.standing = torch.arange(self.time, device=tokens.device)[None]
        self.positions = self.standing[:, self.span - self.time :] if positions is None else positions
        self.rotation = Rotation(shape, self.positions) if shape.rotates else None
        self._masks: dict[tuple, Any] = {}

    @property
    def real(self) -> Bool[Tensor, "batch time"] | None:
        """Which of the new tokens are no padding; None where all are, as far as can be told."""
        return None if self.documents is None else self.documents[:, self.span - self.time :] >= 0

    def visible(self, window: int | None) -> Rule:
        """Return the rule for layers of a window; its four arguments are indices that broadcast."""
        documents, standing, shift = self.documents, self.standing.expand(self.rows, -1), self.span - self.time
        conditions: list[Rule] = [lambda batch, head, query, key: key <= query + shift]
        if documents is not None and self.shared:
            conditions.append(
                lambda batch, head, query, key: (
                    (documents[batch, query + shift] == documents[batch, key]) | (documents[batch, key] == 0)
                )
            )
        elif documents is not None:
            conditions.append(lambda batch, head, query, key: documents[batch, query + shift] == documents[batch, key])
        if window is not None:
            conditions.append(
                lambda batch, head, query, key: standing[batch, query + shift] - standing[batch, key] < window
            )
        # Lambdas, since FlexAttention traces them and counts their arguments.
        return lambda batch, head, query, key: reduce(and_, [each(batch, head, query, key) for each in conditions])

    def mask(self, form: str, window: int | None, dtype: torch.dtype) -> Any:
        """Return who sees whom in the form a backend asks for, made once; None is causal, or all for a lone query.

        `dense` is 0 where a query sees a key and -inf elsewhere, (batch or 1, 1, time, span); `blocks` is
        FlexAttention's; `causal` is like `dense`, but None where causality is all there is.
        """
        limits = [limit for limit in (window, self.reach) if limit is not None and limit < self.span]
        window = min(limits, default=None)
        causal = self.documents is None and window is None
        if causal and (self.time == 1 or (form == "causal" and self.span == self.time)):
            return None
        key = (form, window, dtype)
        if key not in self._masks:
            self._masks[key] = self._blocks(window) if form == "blocks" else self._dense(window, dtype)
        return self._masks[key]

    def _dense(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "rows 1 time span"]:
        device = self.standing.device
        rows = 1 if self.documents is None and (window is None or len(self.standing) == 1) else self.rows
        batch = torch.arange(rows, device=device)[:, None, None]
        query, key = torch.arange(self.time, device=device)[:, None], torch.arange(self.span, device=device)
        seen = self.visible(window)(batch, batch, query, key).expand(rows, -1, -1)
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))[:, None]

    def _blocks(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        rows = None if self.documents is None and len(self.standing) == 1 else self.rows
        return create_block_mask(self.visible(window), rows, None, self.time, self.span, self.standing.device)  # type: ignore[arg-type]
