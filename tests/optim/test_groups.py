import pytest
import torch

from ludus.optim.groups import build, role
from ludus.optim.settings import AdamWSettings, MuonSettings

ROW = torch.arange(40).view(2, 20)
KINDS = [AdamWSettings(), MuonSettings()]


def decays(optimizer, model) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group["weight_decay"]
        for part in optimizer.parts.values()
        for group in part.param_groups
        for parameter in group["params"]
    }


def walk(model, optimizer, steps: int, *, start: int = 0) -> list[torch.Tensor]:
    for step in range(start, start + steps):
        optimizer.set_rate(1 / (1 + step))
        model((ROW + step) % 61).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_roles_follow_names_and_shapes(tiny):
    roles = {name: role(name, parameter) for name, parameter in tiny().named_parameters()}
    assert roles["embed_tokens.weight"] == "embedding"
    assert roles["lm_head.weight"] == "head"
    assert roles["layers.1.mlp.down_proj.weight"] == "matrix"
    assert {roles[name] for name in roles if "norm" in name} == {"scalar"}


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_is_in_one_group_and_norms_are_never_decayed(tiny, settings, tied: bool):
    model = tiny(tied=tied)
    found = decays(build(model.named_parameters(), settings), model)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(decay == 0 for name, decay in found.items() if "norm" in name)
    assert all(decay == settings.weight_decay for name, decay in found.items() if "proj" in name)


@pytest.mark.parametrize("settings", KINDS)
def test_frozen_weights_are_left_out(tiny, settings):
    model = tiny()
    model.embed_tokens.weight.requires_grad_(False)
    model.layers[0].requires_grad_(False)
    before = [parameter.clone() for parameter in model.layers[0].parameters()]
    walk(model, build(model.named_parameters(), settings), 2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.layers[0].parameters(), strict=True))


@pytest.mark.parametrize("settings", KINDS)
def test_a_rate_is_a_factor_of_each_groups_peak(tiny, settings):
    optimizer = build(tiny().named_parameters(), settings)
    groups = [group for part in optimizer.parts.values() for group in part.param_groups]
    peaks = [group["lr"] for group in groups]
    for factor in (0.5, 0.0, 1.0):
        optimizer.set_rate(factor)
        assert [group["lr"] for group in groups] == [factor * peak for peak in peaks]


@pytest.mark.parametrize("settings", KINDS)
def test_state_by_name_continues_bit_for_bit(tiny, settings):
    model = tiny()
    optimizer = build(model.named_parameters(), settings)
    walk(model, optimizer, 3)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    state = {name: {key: value.clone() for key, value in one.items()} for name, one in optimizer.state_dict().items()}
    expected = walk(model, optimizer, 3, start=3)
    fresh = tiny(seed=9)
    fresh.load_state_dict(weights)
    again = build(fresh.named_parameters(), settings)
    walk(fresh, again, 1)
    fresh.load_state_dict(weights)
    again.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(walk(fresh, again, 3, start=3), expected, strict=True))


def test_loaded_state_is_a_copy(tiny):
    model = tiny()
    optimizer = build(model.named_parameters(), AdamWSettings())
    walk(model, optimizer, 1)
    state = optimizer.state_dict()
    before = state["norm.weight"]["exp_avg"].clone()
    optimizer.load_state_dict(state)
    walk(model, optimizer, 1, start=1)
    assert torch.equal(state["norm.weight"]["exp_avg"], before)
