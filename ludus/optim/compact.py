"""AdamW whose moments take less of the memory that is short: in eight bits, or in pages that may leave the GPU.

Eight bits (arXiv 2110.02861): each moment is one byte a weight and one float for 256, decoded for the update and
encoded again. Tensors of fewer than 4096 weights, which would win nothing, keep float32. Paged moments stay float32 in
memory that the driver moves between GPU and host, by bitsandbytes.
"""

import importlib.util
import math
from typing import Any, Literal

import torch
from torch import Tensor

from ludus.base.errors import CheckpointError, ConfigError, MissingExtra
from ludus.optim import dynamic
from ludus.optim.adamw import MOMENTS, AdamW

SMALLEST = 4096  # weights of a tensor whose moments are kept in eight bits
PAGED = 100_000  # weights of a tensor whose moments are paged; smaller ones would share no page
SCALES = tuple(f"{name}_scales" for name in MOMENTS)
State = Literal["float32", "8bit", "paged"]


def adamw(state: State, groups: list[dict], **how: Any) -> AdamW:
    """Return AdamW with its moments kept as asked.

    Raises:
        ConfigError: paged moments were asked for where they cannot be.
        MissingExtra: they need bitsandbytes, which is not installed.
    """
    return {"float32": AdamW, "8bit": AdamW8bit, "paged": PagedAdamW}[state](groups, **how)


class AdamW8bit(AdamW):
    """AdamW with both moments in eight bits."""

    def remember(self, known: dict[Tensor, dict[str, Tensor]]) -> None:
        """Take moments and counts back, as copies.

        Raises:
            CheckpointError: they were kept in another way.
        """
        for parameter, values in known.items():
            if values.keys() != self._fresh(parameter, "meta").keys():
                raise CheckpointError(
                    "the checkpoint's moments are not in eight bits where optimizer.state=8bit keeps them so; "
                    "go on with the optimizer.state it was made with, or start anew"
                )
        super().remember(known)

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter not in self.state:
            self.state[parameter] = self._fresh(parameter, parameter.device)
        return self.state[parameter]

    def _fresh(self, parameter: Tensor, device: torch.device | str) -> dict[str, Tensor]:
        count = torch.zeros((), dtype=torch.float32, device=device if self.fused or device == "meta" else "cpu")
        if parameter.numel() < SMALLEST:
            return {"step": count} | {name: torch.zeros_like(parameter, device=device) for name in MOMENTS}
        blocks = -(-parameter.numel() // dynamic.BLOCK)
        codes = {name: torch.zeros(parameter.shape, dtype=torch.uint8, device=device) for name in MOMENTS}
        return {"step": count} | codes | {name: torch.zeros(blocks, device=device) for name in SCALES}

    def _update(self, group: dict, parameters: list[Tensor], states: list[dict], skip: Tensor | None) -> None:
        pairs = list(zip(parameters, states, strict=True))
        small = [pair for pair in pairs if SCALES[0] not in pair[1]]
        if small:
            super()._update(group, [one for one, _ in small], [state for _, state in small], skip)
        for parameter, state in pairs:
            if SCALES[0] in state:
                self._update_one(group, parameter, state, skip)

    def _update_one(self, group: dict, parameter: Tensor, state: dict[str, Tensor], skip: Tensor | None) -> None:
        """Update a tensor piece by piece, so that no more than a piece of its moments is ever in float32."""
        state["step"] += 1 if skip is None else (~skip).float()
        assert parameter.grad is not None
        whole, gradients = parameter.detach().reshape(-1), parameter.grad.reshape(-1)
        codes = [state[name].view(-1) for name in MOMENTS]
        step = dynamic.PIECES.get(whole.device.type, dynamic.PIECE)
        for start in range(0, whole.numel(), step):
            here = slice(start, start + step)
            blocks = slice(start // dynamic.BLOCK, (start + step) // dynamic.BLOCK)
            kept = [whole[here], *(each[here] for each in codes), *(state[name][blocks] for name in SCALES)]
            for old, new in zip(kept, self._advanced(group, kept, gradients[here], state["step"]), strict=True):
                old.copy_(new if skip is None else torch.where(skip, old, new))
        if not parameter.is_contiguous():  # its weights do not lie in a row
            parameter.copy_(whole.view(parameter.shape))

    def _advanced(self, group: dict, kept: list[Tensor], gradients: Tensor, count: Tensor) -> list[Tensor]:
        """Return weights, codes and scales after the update of a piece."""
        weights, first_codes, second_codes, first_scales, second_scales = kept
        device, gradients = weights.device, gradients.float()
        first = dynamic.decode(first_codes, first_scales, dynamic.levels(True, device))
        second = dynamic.decode(second_codes, second_scales, dynamic.levels(False, device))
        first.lerp_(gradients, 1 - self.betas[0])
        second.mul_(self.betas[1]).addcmul_(gradients, gradients, value=1 - self.betas[1])
        # 1 - beta^count without losing digits, where the count is.
        unbiased, unbiased_square = (-torch.expm1(count * math.log(beta)) if beta else 1.0 for beta in self.betas)
        root = second.sqrt().div_(unbiased_square**0.5).add_(self.epsilon)
        moved = (first / root).mul_(-group["lr"] / unbiased)
        weights = (weights.float() * (1 - group["lr"] * group["weight_decay"])).add_(moved)
        first_codes, first_scales = dynamic.encode(first)
        second_codes, second_scales = dynamic.encode(second, signed=False)
        return [weights, first_codes, second_codes, first_scales, second_scales]


class PagedAdamW(AdamW):
    """AdamW with float32 moments that the driver may move to the host while the GPU is full (NVIDIA only)."""

    def __init__(self, groups: list[dict], **how: Any) -> None:
        super().__init__(groups, **how)
        devices = {parameter.device.type for group in groups for parameter in group["params"]}
        if devices - {"cuda"}:
            where = ", ".join(sorted(devices))
            raise ConfigError(f"optimizer.state=paged is for NVIDIA GPUs, not for {where}; use 8bit or float32")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingExtra("optimizer.state=paged needs bitsandbytes; install with: pip install 'ludus[qlora]'")

    def remember(self, known: dict[Tensor, dict[str, Tensor]]) -> None:
        """Take moments and counts back, into pages of their own."""
        self.state = {}
        for parameter, values in known.items():
            state = self._state(parameter)
            for name, value in values.items():
                state[name].copy_(value)

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter not in self.state:
            moments = {name: self._page(parameter) for name in MOMENTS}
            self.state[parameter] = {"step": torch.zeros((), dtype=torch.float32)} | moments
        return self.state[parameter]

    def _page(self, parameter: Tensor) -> Tensor:
        from bitsandbytes import functional  # type: ignore[import-not-found]

        if parameter.numel() < PAGED:
            return torch.zeros_like(parameter, dtype=torch.float32)
        made = functional.get_paged(*parameter.shape, dtype=torch.float32, device=parameter.device)
        functional.fill(made, 0)
        return made

    def _update(self, group: dict, parameters: list[Tensor], states: list[dict], skip: Tensor | None) -> None:
        from bitsandbytes import functional  # type: ignore[import-not-found]

        if skip is not None and bool(skip):  # the kernel does not look at the flag
            return
        for parameter, state in zip(parameters, states, strict=True):
            state["step"] += 1
            assert parameter.grad is not None
            functional.optimizer_update_32bit(
                "adam",
                parameter.grad,
                parameter,
                state["exp_avg"],
                self.betas[0],
                self.epsilon,
                int(state["step"]),
                group["lr"],
                state["exp_avg_sq"],
                self.betas[1],
                weight_decay=group["weight_decay"],
            )
        if parameters[0].device.type == "cuda":  # pages may not be read here while the GPU writes them
            torch.cuda.synchronize(parameters[0].device)
