"""Several memory-mapped files read as if they were one array."""

from collections.abc import Sequence

import numpy as np


class Files:
    """Arrays end to end; index it with a slice or an array of places, as one array."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        # The plain view of a memory map: slicing a `memmap` itself costs more than what it reads.
        self.parts = [np.asarray(part) for part in parts]
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.dtype = self.parts[0].dtype

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, places: slice | np.ndarray, /) -> np.ndarray:
        if isinstance(places, slice):
            return self._between(*places.indices(len(self))[:2])
        flat = places.reshape(-1)
        owners = np.searchsorted(self.ends, flat, side="right")
        found = np.empty(len(flat), self.dtype)
        for owner in np.unique(owners).tolist():
            here = owners == owner
            found[here] = self.parts[owner][flat[here] - (self.ends[owner] - len(self.parts[owner]))]
        return found.reshape(places.shape)

    def _between(self, start: int, stop: int) -> np.ndarray:
        pieces = []
        while start < stop:
            owner = int(np.searchsorted(self.ends, start, side="right"))
            begin = int(self.ends[owner]) - len(self.parts[owner])
            until = min(stop, int(self.ends[owner]))
            pieces.append(self.parts[owner][start - begin : until - begin])
            start = until
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, self.dtype), *pieces])


Tokens = np.ndarray | Files
