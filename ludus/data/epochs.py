"""The order of examples, epoch after epoch: a function of (seed, epoch), with a cursor that is all its state."""

import numpy as np

from ludus.base.seeds import derive_seed


class Epochs:
    """Deal out the numbers below `count`, shuffled anew in each epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.epoch, self.cursor = 0, 0

    def take(self, number: int) -> list[int]:
        """Return the next numbers; the end of an epoch is filled from the next, so that none is left out."""
        taken: list[int] = []
        while len(taken) < number:
            order = np.random.default_rng(derive_seed(self.seed, "epoch", self.epoch)).permutation(self.count)
            fresh = order[self.cursor : self.cursor + number - len(taken)].tolist()
            taken += fresh
            self.cursor += len(fresh)
            if self.cursor == self.count:
                self.epoch, self.cursor = self.epoch + 1, 0
        return taken

    def state_dict(self) -> dict[str, int]:
        """Return where the order stands."""
        return {"epoch": self.epoch, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Stand where `state` says."""
        self.epoch, self.cursor = state["epoch"], state["cursor"]
