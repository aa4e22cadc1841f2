"""AdamW (arXiv 1711.05101 algorithm 2), by PyTorch's fused kernel where there is one.

Moments are float32 here; in eight bits, or paged, they are in `ludus.optim.compact`.

Not `torch.optim.AdamW`: the first use of any `torch.optim.Optimizer` imports PyTorch's compiler, which takes longer
than a small model takes to train. The kernel is the same, and so is every bit of the result.
"""

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """AdamW over groups of parameters, each with its `lr` and `weight_decay`."""

    def __init__(self, groups: list[dict], *, betas: tuple[float, float], epsilon: float, fused: bool) -> None:
        self.param_groups, self.betas, self.epsilon, self.fused = groups, betas, epsilon, fused
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, *, skip: Tensor | None = None) -> None:
        """Update every parameter that has a gradient, unless `skip` (0-dim, bool) is true.

        Skipped, weights, moments and counts keep every bit. The fused kernel looks at the flag itself; without it the
        host has to wait for it.
        """
        if skip is not None and not self.fused and bool(skip):
            return
        for group in self.param_groups:
            chosen = [parameter for parameter in group["params"] if parameter.grad is not None]
            if chosen:
                states = [self._state(parameter) for parameter in chosen]
                self._update(group, chosen, states, skip)

    def remember(self, known: dict[Tensor, dict[str, Tensor]]) -> None:
        """Take moments and counts back, as copies, to where they are read."""
        self.state = {
            parameter: {
                name: value.to(parameter.device if self.fused or name != "step" else value.device, copy=True)
                for name, value in values.items()
            }
            for parameter, values in known.items()
        }

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter not in self.state:
            device = parameter.device if self.fused else "cpu"
            count = torch.zeros((), dtype=torch.float32, device=device)
            self.state[parameter] = {"step": count} | {name: torch.zeros_like(parameter) for name in MOMENTS}
        return self.state[parameter]

    def _update(self, group: dict, parameters: list[Tensor], states: list[dict], skip: Tensor | None) -> None:
        (self._fused if self.fused else self._plain)(group, parameters, states, skip)

    def _fused(self, group: dict, parameters: list[Tensor], states: list[dict], skip: Tensor | None) -> None:
        counts = [state["step"] for state in states]
        torch._foreach_add_(counts, 1)  # type: ignore[attr-defined]
        found_inf = None if skip is None else skip.float()
        torch._fused_adamw_(  # type: ignore[attr-defined]
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            counts,
            lr=group["lr"],
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=group["weight_decay"],
            eps=self.epsilon,
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=found_inf,
        )
        torch.autograd.graph.increment_version(parameters)  # the kernel does not, and what follows from them is kept
        if found_inf is not None:
            torch._foreach_sub_(counts, [found_inf] * len(counts))  # type: ignore[attr-defined]

    def _plain(self, group: dict, parameters: list[Tensor], states: list[dict], skip: Tensor | None) -> None:
        beta1, beta2 = self.betas
        for parameter, state in zip(parameters, states, strict=True):
            state["step"] += 1
            step, gradient = float(state["step"]), parameter.grad
            assert gradient is not None
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            state["exp_avg"].lerp_(gradient, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = (state["exp_avg_sq"].sqrt() / (1 - beta2**step) ** 0.5).add_(self.epsilon)
            parameter.addcdiv_(state["exp_avg"], root, value=-group["lr"] / (1 - beta1**step))
