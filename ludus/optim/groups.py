"""Which parameter gets which optimizer and rate, by its role, and the one optimizer the loop sees.

Roles: `embedding`, `table` (vectors of n-grams), `head`, `matrix` (two dimensions, or a stack of experts' matrices) and
`scalar` (norms, biases, convolutions, scalars). Weight decay never touches scalars and tables; under Muon it touches
`matrix` only, unless told otherwise. Frozen parameters are left out.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ludus.optim.adamw import AdamW
from ludus.optim.compact import adamw
from ludus.optim.muon import Muon, Recipe
from ludus.optim.settings import ROLES, AdamWSettings, MuonSettings, role_decays, role_rates

FUSED = {"cpu", "cuda", "mps", "xpu"}  # devices with a kernel that does all of AdamW at once
READ_AT_ONCE = ("cpu",)  # devices whose tensors the host reads without waiting
EMBEDDINGS = ("embed_tokens", "embed_positions")


def role(name: str, parameter: Tensor) -> str:
    """Name the role of a parameter; virtual tokens, which stand before a text, are embeddings."""
    if name.startswith("virtual."):
        return "embedding"
    if parameter.dim() < 2 or "convolution" in name:
        return "scalar"
    if any(word in name for word in EMBEDDINGS):
        return "embedding"
    if name.startswith("ngrams"):
        return "table"
    if "lm_head" in name:
        return "head"
    return "matrix" if parameter.dim() == 2 or (parameter.dim() == 3 and "experts" in name) else "scalar"


class Optimizer:
    """Several optimizers as one, with a shared factor on their rates and state kept by parameter name."""

    def __init__(
        self,
        parts: Mapping[str, AdamW | Muon],
        names: Mapping[Tensor, str],
        roles: Mapping[str, list[Tensor]],
    ) -> None:
        self.parts, self.names, self.roles = parts, names, roles
        self.peaks = [(group, group["lr"]) for part in parts.values() for group in part.param_groups]
        self._measuring = False
        self._measured: dict[str, tuple[Tensor, Tensor]] = {}

    def set_rate(self, factor: float) -> None:
        """Set each group to its peak rate times `factor`."""
        for group, peak in self.peaks:
            group["lr"] = peak * factor

    def rates(self) -> dict[str, float]:
        """Return the rate of the next update by role; the lowest where parameters of a role have factors on theirs."""
        found: dict[str, float] = {}
        for group, _ in self.peaks:
            for role in group["roles"]:
                if role not in found or group["lr"] < found[role]:
                    found[role] = group["lr"]
        return found

    def parameters_by_role(self) -> dict[str, list[Tensor]]:
        """Return the parameters that train, by role; a role that none has is left out."""
        return {role: list(parameters) for role, parameters in self.roles.items() if parameters}

    def step(self, skip: Tensor | None = None) -> None:
        """Update every parameter, unless `skip` (0-dim, bool, on the device of the parameters) is true.

        Skipped, weights, moments and counts keep every bit, even if the gradients are not finite. On an accelerator
        the host does not wait to know.
        """
        if skip is not None and skip.device.type in READ_AT_ONCE:
            if skip:  # the host knows already
                return
            skip = None
        before = self._snapshot()
        for part in self.parts.values():
            part.step(skip=skip)
        if before:
            self._compare(before)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.names:
            parameter.grad = None

    def measure(self) -> None:
        """Ask for the sizes of the next update; costs a copy of the weights for that step, and nothing after."""
        self._measuring = True

    def update_ratio(self) -> dict[str, float]:
        """Return the norm of the last measured update over that of the weights before it, by role; {} if none was."""
        return {role: float(moved / size) for role, (moved, size) in self._measured.items()}

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
            every = [parameter for group in part.param_groups for parameter in group["params"]]
            part.remember({one: dict(state[self.names[one]]) for one in every if self.names[one] in state})

    def _snapshot(self) -> dict[str, list[Tensor]]:
        if not self._measuring:
            return {}
        self._measuring = False
        return {role: [one.detach().clone() for one in those] for role, those in self.parameters_by_role().items()}

    @torch.no_grad()
    def _compare(self, before: dict[str, list[Tensor]]) -> None:
        for role, old in before.items():
            moved = torch._foreach_sub(self.roles[role], old)  # type: ignore[attr-defined]
            self._measured[role] = (_norm(list(moved)), _norm(old).clamp(min=1e-30))


def build(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    settings: AdamWSettings | MuonSettings,
    *,
    precision: torch.dtype = torch.float32,
    rank: int = 0,
    ranks: int = 1,
    factor: Callable[[str], float] = lambda name: 1.0,
) -> Optimizer:
    """Group the trainable parameters by role and give each group its optimizer.

    `factor` of a parameter's name multiplies its rate (LoRA+, arXiv 2402.12354, trains B faster than A); its decay is
    decoupled, and so goes with the rate.

    `precision` is that of Muon's matrix products; moments keep the dtype of their parameters. With `ranks` processes of
    the default process group, which hold the same weights and gradients, Muon shares its matrices out.
    """
    names: dict[Tensor, str] = {}
    roles: dict[str, list[Tensor]] = {role: [] for role in ROLES}
    for name, parameter in named_parameters:
        if parameter.requires_grad and parameter not in names:  # a tied head is the embedding
            names[parameter] = name
            roles[role(name, parameter)].append(parameter)
    groups = _groups(roles, settings, {parameter: factor(name) for parameter, name in names.items()})
    parts: dict[str, AdamW | Muon] = {}
    if isinstance(settings, MuonSettings):
        matrices = [group for group in groups if group["roles"] == ["matrix"]]
        groups = [group for group in groups if group["roles"] != ["matrix"]]
        if matrices:
            recipe = Recipe(precision=precision, **settings.model_dump(include=set(Recipe.__dataclass_fields__)))
            parts["muon"] = Muon(matrices, rank=rank, ranks=ranks, recipe=recipe)
    if groups:
        parts["adamw"] = adamw(
            getattr(settings, "state", "float32"),
            groups,
            betas=(settings.beta1, settings.beta2),
            epsilon=settings.epsilon,
            # 6-7 times faster than the loop over parameters, on a CPU too.
            fused=all(one.device.type in FUSED and one.is_floating_point() for one in names),
        )
    return Optimizer(parts, names, roles)


def _groups(
    roles: Mapping[str, list[Tensor]], settings: AdamWSettings | MuonSettings, factors: Mapping[Tensor, float]
) -> list[dict]:
    """Make one group of the roles that share rate and decay: each group costs a call. Muon's stands alone."""
    rates, decays = role_rates(settings), role_decays(settings)
    found: dict[tuple, dict] = {}
    for role, parameters in roles.items():
        alone = isinstance(settings, MuonSettings) and role == "matrix"
        for parameter in parameters:
            rate = rates[role] * factors[parameter]
            empty = {"params": [], "lr": rate, "weight_decay": decays[role], "roles": []}
            group = found.setdefault((rate, decays[role], alone), empty)
            group["params"].append(parameter)
            if role not in group["roles"]:
                group["roles"].append(role)
    return list(found.values())


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([norm.float() for norm in torch._foreach_norm(tensors)]).norm()  # type: ignore[attr-defined]
