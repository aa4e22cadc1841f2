"""Mixture of experts: a router sends each token to a few of many feed-forwards, and some serve every token.

Balance without an auxiliary loss (arXiv 2408.15664): each expert has a bias that counts in the choice, but not in the
weights of what was chosen. After each step `Balance` raises the bias of experts that had less than their share of the
tokens and lowers it for the others. Loads are counted while training only; the biases are buffers, never trained.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ludus.model.architecture import Activation, Architecture, Experts
from ludus.model.feedforward import FeedForward, activate


class Stack(nn.Module):
    """The weights of all experts, stacked, so that a layer has as many parameters as one feed-forward."""

    def __init__(self, shape: Architecture, experts: Experts) -> None:
        super().__init__()
        inward, outward = (experts.count, experts.hidden, shape.width), (experts.count, shape.width, experts.hidden)
        self.kind: Activation = shape.activation
        self.gate_proj = nn.Parameter(torch.zeros(inward)) if self.kind == "swiglu" else None
        self.up_proj = nn.Parameter(torch.zeros(inward))
        self.down_proj = nn.Parameter(torch.zeros(outward))

    def forward(self, x: Float[Tensor, "tokens channels"], counts: list[int]) -> Float[Tensor, "tokens channels"]:
        """Map tokens that are sorted by expert; the first `counts[0]` of them go to the first."""
        found = []
        for expert, part in enumerate(x.split(counts)):
            gate = None if self.gate_proj is None else F.linear(part, self.gate_proj[expert])
            inner = activate(self.kind, F.linear(part, self.up_proj[expert]), gate)
            found.append(F.linear(inner, self.down_proj[expert]))
        return torch.cat(found)


class Router(nn.Module):
    """Score the experts for each token. `bias` moves the choice; `load` counts each one's tokens since a step."""

    bias: Tensor
    load: Tensor

    def __init__(self, shape: Architecture, experts: Experts) -> None:
        super().__init__()
        self.chosen = experts.chosen
        self.weight = nn.Parameter(torch.zeros(experts.count, shape.width))
        self.register_buffer("bias", torch.zeros(experts.count))
        self.register_buffer("load", torch.zeros(experts.count), persistent=False)

    def forward(self, x: Float[Tensor, "tokens channels"], real: Bool[Tensor, " tokens"] | None) -> tuple[Tensor, ...]:
        """Return the chosen experts of each token and their weights, which sum to 1: (tokens, chosen) each."""
        with torch.autocast(x.device.type, enabled=False):  # a choice must not hang on the last digits of bfloat16
            scores = F.linear(x.float(), self.weight.float()).sigmoid()
        choice = (scores.detach() + self.bias).topk(self.chosen, dim=-1).indices
        if self.training:
            counted = choice if real is None else choice[real]
            self.load += torch.stack([(counted == expert).sum() for expert in range(len(self.bias))])
        weights = scores.gather(1, choice)
        return choice, weights / weights.sum(dim=-1, keepdim=True)


class Mixture(nn.Module):
    """The feed-forward of a layer, as a mixture of experts."""

    def __init__(self, shape: Architecture, experts: Experts) -> None:
        super().__init__()
        self.router = Router(shape, experts)
        self.experts = Stack(shape, experts)
        self.shared = FeedForward(shape, experts.shared * experts.hidden) if experts.shared else None

    def forward(
        self, x: Float[Tensor, "batch time channels"], real: Bool[Tensor, "batch time"] | None = None
    ) -> Tensor:
        """Map each position by its experts; those that are not `real` do not count towards the load."""
        flat = x.flatten(0, 1)
        choice, weights = self.router(flat, None if real is None else real.flatten())
        places = choice.flatten().argsort(stable=True)  # of the pairs of token and expert, by expert
        counts = torch.bincount(choice.flatten(), minlength=len(self.router.bias)).tolist()
        found = self.experts(flat[places // choice.shape[1]], counts)
        back = torch.empty_like(places).scatter_(0, places, torch.arange(len(places), device=places.device))
        mixed = (found[back].view(*choice.shape, -1) * weights[..., None].to(found.dtype)).sum(dim=1)
        mixed = mixed.view(x.shape)
        return mixed if self.shared is None else mixed + self.shared(x)


class Balance:
    """Keep the experts of a model busy: call it after each step. What it has learned is part of a checkpoint."""

    def __init__(self, model: nn.Module, rate: float, total: Callable[[Tensor], Any] = lambda load: load) -> None:
        self.routers = {name: module for name, module in model.named_modules() if isinstance(module, Router)}
        self.rate, self.total = rate, total

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Move the biases by the sign of what is missing, forget the loads, and say how even these were.

        `total` adds a load over all ranks. `expert_load_maximum` is the busiest expert's load over its share, the
        largest of all layers; `expert_load_minimum` likewise.
        """
        shares = []
        for router in self.routers.values():
            load = torch.as_tensor(self.total(router.load)).to(router.load)
            router.bias += self.rate * (load.mean() - load).sign()
            shares.append(load / load.mean().clamp(min=1e-9))
            router.load.zero_()
        if not shares:
            return {}
        every = torch.stack(shares)
        return {"expert_load_maximum": float(every.max()), "expert_load_minimum": float(every.min())}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the biases by the router's name."""
        return {name: router.bias.clone() for name, router in self.routers.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the biases back."""
        for name, router in self.routers.items():
            router.bias.copy_(state[name])
            router.load.zero_()
