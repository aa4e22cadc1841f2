"""What a person may say about staying alive: spikes, rollbacks, early stopping. Free of torch.

What is skipped, undone or stopped is decided in `guard`, `recovery` and `stopping`; here are only the figures.
"""

from typing import Any

from ludus.base.config import Field, Settings


class SpikeSettings(Settings):
    """What counts as a spike: a loss or a gradient norm far above the accepted steps before it.

    Both bounds of a kind must be passed: so many deviations, for noisy streams, and the least rise, for calm ones.
    """

    judge: bool = Field(True, description="Skip updates that spike; updates that are no numbers are skipped anyway.")
    window: int = Field(128, ge=16, description="Accepted steps a step is judged against.")
    warmup: int | None = Field(None, ge=8, description="Accepted steps before the first is judged; at most the window.")
    deviations: float = Field(8.0, gt=0, description="Robust standard deviations above the median.")
    rise: float = Field(1.0, ge=0, description="Least rise of a spiking loss above its median, in the loss's own unit.")
    factor: float = Field(10.0, ge=1, description="Least multiple of the median that a spiking gradient norm is.")

    def derive(self, root: Any) -> dict[str, tuple[Any, str]]:
        """Judge once half the window is full."""
        return {"warmup": (self.window // 2, f"half of window={self.window}")}

    @property
    def accepted_first(self) -> int:
        """Accepted steps before a step may be judged; a window that is full is always enough."""
        return min(self.window, self.window // 2 if self.warmup is None else self.warmup)


class RecoverySettings(Settings):
    """When skipping is not enough."""

    after: int = Field(8, ge=1, description="Skipped updates in a row that take the run back to its last checkpoint.")
    tries: int = Field(3, ge=0, description="Times to go back without getting any further before the run gives up.")


class StoppingSettings(Settings):
    """When more training does not help: stop early, and end with the best weights."""

    patience: int | None = Field(
        None, ge=1, description="Validations in a row without improvement to stop after; None: never."
    )
    least: float = Field(0.0, ge=0, description="Least fall of the validation loss that counts as improvement.")
    best: bool = Field(False, description="End with the weights of the best validation instead of the last.")
