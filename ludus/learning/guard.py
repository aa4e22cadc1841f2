"""What may become an update: no loss or gradient that is no number, and no spike.

The verdict is a tensor on the device, made without waiting for it; only a hook reads it, after the step. A spike is
judged against accepted steps alone, so that a bad batch never becomes the measure of the next. For float16 the guard
also holds the factor of the loss. What follows from many skips in a row is the business of `recovery`.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ludus.learning.guard_settings import SpikeSettings

Verdict = Literal["ok", "overflow", "non-finite", "spike"]

RENEW_EVERY = 8  # steps between two looks at the window; sorting it costs more than all the rest
NORMAL = 1.4826  # median absolute deviation to standard deviation, for normal noise
HIGHEST_SCALE, LOWEST_SCALE, GROW_EVERY = 2.0**16, 1.0, 2000  # of the loss in float16


class Guard:
    """Judges each step by its mean loss and the norm of its gradient before clipping.

    On many ranks all must judge the same figures: the loss and the norm of the whole step.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        spike: SpikeSettings | None = None,
        scaling: bool = False,
    ) -> None:
        """`scaling` is for float16: the loss is multiplied by `scale`, and `judge` takes the norm divided by it."""
        self.spike, self.scaling, self.device = spike or SpikeSettings(), scaling, torch.device(device)
        self.scale: Tensor | float = self._full((), HIGHEST_SCALE) if scaling else 1.0
        self.skips = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._good = torch.zeros((), dtype=torch.int64, device=device)
        self._skip = self._overflow = torch.zeros((), dtype=torch.bool, device=device)
        self._zeros = self._values = self._full((2,), 0.0)
        self._floors = torch.tensor([[self.spike.rise], [math.log(self.spike.factor)]], device=device)
        self.forget()

    def forget(self) -> None:
        """Empty the window: what comes is of another kind, as after a change of the data; a warm-up begins."""
        self._window = self._full((2, self.spike.window), math.nan)  # losses, norms; the newest last
        self._usual, self._limits = self._full((2,), math.nan), self._full((2,), math.inf)
        self._judged = 0

    def calm(self) -> None:
        """Count skips in a row from here."""
        self.skipped_in_a_row = torch.zeros_like(self.skipped_in_a_row)

    @torch.no_grad()
    def judge(self, loss: Tensor | float, norm: Tensor | float) -> Tensor:
        """Return whether to skip the update, as a boolean on the device; nothing here waits for the device."""
        self._values = values = torch.stack((self._figure(loss), self._figure(norm)))
        # x + x·0 is x, and NaN where x is no finite number; NaN is below no limit.
        accepted = (torch.addcmul(values, values, self._zeros) <= self._limits).all()
        self._skip = event = ~accepted
        if self.scaling:
            event = self._rescale(accepted)
        self.skips = self.skips + event
        self.skipped_in_a_row = (self.skipped_in_a_row + event) * self._skip
        if self.spike.judge:
            self._remember(accepted)
        return self._skip

    def verdict(self) -> Verdict:
        """Read the last judgement; `overflow` is the search for float16's scale, and nothing to worry about."""
        if not bool(self._skip):
            return "ok"
        if self.scaling and bool(self._overflow):
            return "overflow"
        return "spike" if bool(self._values.isfinite().all()) else "non-finite"

    def usual(self) -> tuple[float, float]:
        """Return the median loss and gradient norm of the accepted steps; NaN before there are any to speak of."""
        loss, norm = self._usual.tolist()
        return loss, norm

    def limits(self) -> tuple[float, float]:
        """Return the loss and the gradient norm above which a step is a spike."""
        loss, norm = self._limits.tolist()
        return loss, norm

    def state_dict(self) -> dict[str, Any]:
        """Return the window and what was derived from it, the counts and the scale."""
        return {
            "window": self._window,
            "usual": self._usual,
            "limits": self._limits,
            "judged": self._judged,
            "skips": self.skips,
            "skipped_in_a_row": self.skipped_in_a_row,
        } | ({"scale": self.scale, "good": self._good} if self.scaling else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Judge on as the guard whose state this is; a window of another length is begun anew."""
        # What `judge` changes it replaces, so that these may be the very tensors of the state.
        if state["window"].shape == self._window.shape:
            self._window, self._usual = state["window"].to(self.device), state["usual"].to(self.device)
            self._limits, self._judged = state["limits"].to(self.device), state["judged"]
        else:
            self.forget()
        self.skips = state["skips"].to(self.device)
        self.skipped_in_a_row = state["skipped_in_a_row"].to(self.device)
        if self.scaling and "scale" in state:
            self.scale, self._good = state["scale"].to(self.device), state["good"].to(self.device)

    def _rescale(self, accepted: Tensor) -> Tensor:
        """Halve the scale where the gradient alone overflows, double it after many good steps; return if it matters."""
        finite, scale = self._values.isfinite(), torch.as_tensor(self.scale)
        self._overflow = finite[0] & ~finite[1] & (scale > LOWEST_SCALE)
        good = torch.where(self._overflow, 0, self._good + accepted)
        grow = good >= GROW_EVERY
        factor = torch.where(self._overflow, 0.5, torch.where(grow, 2.0, 1.0))
        self.scale = (scale * factor).clamp(LOWEST_SCALE, HIGHEST_SCALE)
        self._good = torch.where(grow, 0, good)
        return ~accepted & ~self._overflow

    def _remember(self, accepted: Tensor) -> None:
        later = torch.cat((self._window[:, 1:], self._values[:, None]), dim=1)
        self._window = torch.where(accepted, later, self._window)
        self._judged += 1
        if self._judged % RENEW_EVERY == 0:
            self._renew()

    def _renew(self) -> None:
        """Set the limits by median and median absolute deviation; of norms in logarithms, where tails are even."""
        window = torch.stack((self._window[0], self._window[1].log()))
        window = torch.where(window.isfinite(), window, math.nan)  # a gradient of zero says nothing of gradients
        count = (~window.isnan()).sum(dim=1, keepdim=True)
        middle = ((count - 1) // 2).clamp(min=0)
        # Sorted, NaN comes last. No median of torch's: on CUDA it is not deterministic.
        median = window.sort(dim=1).values.gather(1, middle)
        deviation = (window - median).abs().sort(dim=1).values.gather(1, middle) * NORMAL
        limit = median + torch.maximum(self.spike.deviations * deviation, self._floors)
        limit = torch.where(count >= self.spike.accepted_first, limit, math.inf)[:, 0]
        self._limits = torch.stack((limit[0], limit[1].exp()))
        self._usual = torch.stack((median[0, 0], median[1, 0].exp()))

    def _figure(self, value: Tensor | float) -> Tensor:
        if isinstance(value, float | int):
            return self._full((), value)
        return value.detach().to(self.device, torch.float32)

    def _full(self, shape: tuple[int, ...], value: float) -> Tensor:
        return torch.full(shape, value, dtype=torch.float32, device=self.device)
