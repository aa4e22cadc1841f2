"""Which parameter gets which optimizer and rate, by its role, and the one optimizer the loop sees.

Roles: `embedding`, `head`, `matrix` (two dimensions inside a layer), `scalar` (norms and other vectors). Weight decay
never touches scalars; under Muon it touches `matrix` only. Frozen parameters are left out.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ludus.optim.muon import Muon
from ludus.optim.settings import AdamWSettings, MuonSettings


def role(name: str, parameter: Tensor) -> str:
    """Name the role of a parameter."""
    if "embed_tokens" in name:
        return "embedding"
    if "lm_head" in name:
        return "head"
    return "matrix" if parameter.dim() == 2 else "scalar"


class Optimizer:
    """Several torch optimizers as one, with a shared factor on their rates and state kept by parameter name."""

    def __init__(self, parts: Mapping[str, torch.optim.Optimizer], names: Mapping[Tensor, str]) -> None:
        self.parts, self.names = parts, names
        self.peaks = [(group, group["lr"]) for part in parts.values() for group in part.param_groups]

    def set_rate(self, factor: float) -> None:
        """Set each group to its peak rate times `factor`."""
        for group, peak in self.peaks:
            group["lr"] = peak * factor

    def step(self) -> None:
        """Update every parameter."""
        for part in self.parts.values():
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts.values():
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return moments and counts as {parameter name: {item: tensor}}."""
        return {
            self.names[parameter]: dict(state)
            for part in self.parts.values()
            for parameter, state in part.state.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take moments and counts back by parameter name."""
        for part in self.parts.values():
            part.state.clear()
            for group in part.param_groups:
                for parameter in group["params"]:
                    if self.names[parameter] in state:
                        part.state[parameter] = {
                            key: value.clone() for key, value in state[self.names[parameter]].items()
                        }


def build(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    settings: AdamWSettings | MuonSettings,
    *,
    precision: torch.dtype = torch.float32,
) -> Optimizer:
    """Group the trainable parameters by role and give each group its optimizer.

    `precision` is that of Muon's matrix products; moments keep the dtype of their parameters.
    """
    names: dict[Tensor, str] = {}
    groups: dict[str, list[Tensor]] = {"embedding": [], "head": [], "matrix": [], "scalar": []}
    for name, parameter in named_parameters:
        if parameter.requires_grad and parameter not in names:  # a tied head is the embedding
            names[parameter] = name
            groups[role(name, parameter)].append(parameter)
    if isinstance(settings, MuonSettings):
        others = groups["embedding"] + groups["head"] + groups["scalar"]
        parts = {
            "muon": Muon(
                [_group(groups["matrix"], settings.learning_rate, settings.weight_decay)],
                momentum=settings.momentum,
                precision=precision,
            ),
            "adamw": _adamw([_group(others, settings.adamw_learning_rate, 0.0)], (0.9, 0.95)),
        }
    else:
        rate = settings.learning_rate
        decayed = groups["matrix"] + groups["embedding"] + groups["head"]
        kinds = [_group(decayed, rate, settings.weight_decay), _group(groups["scalar"], rate, 0.0)]
        parts = {"adamw": _adamw([kind for kind in kinds if kind["params"]], (settings.beta1, settings.beta2))}
    return Optimizer(parts, names)


def _group(parameters: list[Tensor], rate: float, decay: float) -> dict:
    return {"params": parameters, "lr": rate, "weight_decay": decay}


def _adamw(groups: list[dict], betas: tuple[float, float]) -> torch.optim.Optimizer:
    # The fused kernel is 6-7 times faster than the loop on a CPU too.
    return torch.optim.AdamW(groups, betas=betas, eps=1e-8, fused=True)
