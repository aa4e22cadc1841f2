"""Factors on the rates of single parameters, as LoRA+ asks for."""

import pytest
import torch
from torch import nn

from ludus.adapters.apply import apply, rate_factor
from ludus.adapters.settings import LoraPlusSettings, LoraSettings
from ludus.optim.groups import build
from ludus.optim.settings import AdamWSettings, MuonSettings


def named() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"q.lora_A.weight": (2, 6), "q.lora_B.weight": (4, 2), "q.lora_magnitude_vector": (4,)}
    return {name: nn.Parameter(torch.randn(size, generator=generator)) for name, size in sizes.items()}


def moved(settings, **how) -> dict[str, float]:
    """Return how far one step at a gradient of ones moves each parameter, by name."""
    parameters = named()
    optimizer = build(parameters.items(), settings, **how)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.set_rate(0.5)
    optimizer.step()
    return {name: float((before[name] - parameter.detach()).norm()) for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    "settings", [AdamWSettings(learning_rate=0.01, weight_decay=0.0), MuonSettings(weight_decay=0.0)]
)
def test_a_factor_multiplies_the_rate_of_what_it_names(settings):
    plain = moved(settings)
    faster = moved(settings, factor=lambda name: 16.0 if "lora_B" in name else 1.0)
    for name, distance in plain.items():
        assert faster[name] == pytest.approx(distance * (16 if "lora_B" in name else 1), rel=1e-4)


def test_a_factor_of_one_changes_no_bit_and_makes_no_group():
    settings = AdamWSettings()
    assert moved(settings) == moved(settings, factor=lambda name: 1.0)
    optimizer = build(named().items(), settings, factor=lambda name: 16.0 if "lora_B" in name else 1.0)
    assert len(optimizer.peaks) == len(build(named().items(), settings).peaks) + 1


def test_the_rate_that_is_told_is_the_one_without_a_factor():
    settings = AdamWSettings(learning_rate=0.01)
    optimizer = build(named().items(), settings, factor=lambda name: 16.0 if "lora_B" in name else 1.0)
    optimizer.set_rate(0.5)
    assert optimizer.rates() == {"matrix": 0.005, "scalar": 0.005}
    assert {role: len(those) for role, those in optimizer.parameters_by_role().items()} == {"matrix": 2, "scalar": 1}


def test_state_is_kept_by_name_whatever_the_factor():
    parameters = named()
    optimizer = build(parameters.items(), AdamWSettings(), factor=rate_factor(LoraPlusSettings()))
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    other = build(named().items(), AdamWSettings(), factor=rate_factor(LoraPlusSettings()))
    other.load_state_dict(optimizer.state_dict())
    assert other.state_dict().keys() == parameters.keys()


def test_lora_plus_trains_b_faster_and_lora_does_not(tiny):
    for settings, expected in ((LoraPlusSettings(rate_ratio=8.0), {1.0, 8.0}), (LoraSettings(), {1.0})):
        model, factor = apply(tiny(), settings, seed=0), rate_factor(settings)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert {factor(name) for name in names} == expected
        assert all(factor(name) == 1.0 for name in names if "lora_A" in name)


@pytest.mark.oracle
def test_groups_are_those_of_peft(tiny):
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    from peft.optimizers import create_loraplus_optimizer

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj = nn.Linear(6, 4)

    config = peft.LoraConfig(r=2, target_modules=["up_proj"])
    theirs = create_loraplus_optimizer(
        peft.get_peft_model(Net(), config), torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=8.0
    )
    rates = {group["lr"]: len(group["params"]) for group in theirs.param_groups if group["params"]}
    both = {name: parameter for name, parameter in named().items() if "magnitude" not in name}
    factor = rate_factor(LoraPlusSettings(rate_ratio=8.0))
    ours = build(both.items(), AdamWSettings(learning_rate=0.01), factor=factor)
    assert {group["lr"]: len(group["params"]) for group, _ in ours.peaks} == pytest.approx(rates)
