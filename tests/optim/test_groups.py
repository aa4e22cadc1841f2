import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ludus.base.config import Field, Settings, fill
from ludus.model.architecture import Experts
from ludus.model.transformer import Transformer
from ludus.optim.groups import build, role
from ludus.optim.settings import ROLES, AdamWSettings, MuonSettings, OptimizerSettings, role_decays, role_rates

ROW = torch.arange(40).view(2, 20)
KINDS = [AdamWSettings(), MuonSettings(), MuonSettings(normalised=True, momentum_warmup=5, method="polar_express")]
NAMED = {
    "embed_tokens.weight": ((61, 32), "embedding"),
    "embed_positions.weight": ((64, 32), "embedding"),
    "ngrams.tables.0.weight": ((50, 32), "table"),
    "lm_head.weight": ((61, 32), "head"),
    "lm_head.bias": ((61,), "scalar"),
    "layers.0.self_attn.q_proj.weight": ((32, 32), "matrix"),
    "layers.0.self_attn.q_proj.bias": ((32,), "scalar"),
    "layers.0.self_attn.q_norm.weight": ((8,), "scalar"),
    "layers.0.mlp.experts.up_proj": ((4, 48, 32), "matrix"),
    "layers.0.mlp.router.weight": ((4, 32), "matrix"),
    "layers.0.mlp_convolution.weight": ((2, 32), "scalar"),
    "embedding_convolution.weight": ((3, 32), "scalar"),
    "layers.0.skip": ((2,), "scalar"),
    "layers.0.self_attn.q_proj.lora_A.weight": ((4, 32), "matrix"),
}


class Stage(Settings):
    optimizer: OptimizerSettings = Field(default=MuonSettings(), discriminator="kind")


def parameters(**given: tuple[int, ...]) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = given or {name: shape for name, (shape, _) in NAMED.items()}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def give_gradients(named: dict[str, torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def bits(named: dict[str, torch.nn.Parameter], optimizer) -> dict[str, bytes]:
    found = {name: parameter.detach().numpy().tobytes() for name, parameter in named.items()}
    state = optimizer.state_dict()
    return found | {f"{name}.{item}": value.numpy().tobytes() for name in state for item, value in state[name].items()}


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
    assert {name: role(name, parameter) for name, parameter in parameters().items()} == {
        name: expected for name, (_, expected) in NAMED.items()
    }


def test_only_products_of_layers_are_matrices_in_every_kind_of_model(shape):
    switches = [
        {"norm": "layer", "position": "learned", "activation": "gelu", "attention_bias": True, "head_bias": True},
        {"qk_norm": "rms", "embedding_convolution": 2, "mlp_convolution": 2, "embedding_skip": True},
        {"attention_convolution": 2, "experts": Experts(count=4, chosen=2, shared=1, hidden=16)},
    ]
    for changes in switches:
        found = {name: role(name, parameter) for name, parameter in Transformer(shape(**changes)).named_parameters()}
        products = {name for name in found if "_proj" in name or "router" in name}
        assert {name for name in found if found[name] == "matrix"} == {n for n in products if not n.endswith("bias")}
        assert {name for name in found if found[name] == "embedding"} == {n for n in found if n.startswith("embed_")}
        assert [name for name in found if found[name] == "head"] == ["lm_head.weight"]


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


@pytest.mark.parametrize("settings", KINDS)
def test_what_is_not_said_derives_from_the_main_rate_the_same_way_filled_or_not(settings):
    filled = fill(Stage(optimizer=settings)).optimizer
    assert role_rates(filled) == role_rates(settings)
    assert role_decays(filled) == role_decays(settings)
    assert None not in filled.model_dump().values()


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("which", ["embedding", "table", "head", "scalar"])
def test_a_role_has_the_rate_it_is_given(settings, which: str):
    optimizer = build(parameters().items(), settings.model_copy(update={f"{which}_learning_rate": 0.125}))
    optimizer.set_rate(0.5)
    expected = {role: rate / 2 for role, rate in role_rates(settings).items()} | {which: 0.0625}
    assert optimizer.rates() == expected
    assert {role: len(those) for role, those in optimizer.parameters_by_role().items()} == {
        role: [expected for _, expected in NAMED.values()].count(role) for role in ROLES
    }


@pytest.mark.parametrize("settings", KINDS)
def test_decay_reaches_what_it_is_meant_for_and_never_scalars(settings):
    named = parameters()
    asked = {"embedding_weight_decay": 0.5, "head_weight_decay": 0.25, "weight_decay": 0.125}
    optimizer = build(named.items(), settings.model_copy(update=asked))
    optimizer.set_rate(1.0)
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)  # so that decay is all there is
    optimizer.step()
    rates, decays = optimizer.rates(), {"embedding": 0.5, "head": 0.25, "matrix": 0.125, "scalar": 0.0, "table": 0.0}
    for name, parameter in named.items():
        kind = NAMED[name][1]
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - rates[kind] * decays[kind]))


@pytest.mark.oracle
def test_steps_of_adamw_are_those_of_pytorch():
    ours, theirs = parameters(), parameters()
    settings = AdamWSettings(
        learning_rate=0.01, table_learning_rate=0.01, weight_decay=0.2, beta1=0.8, beta2=0.97, epsilon=1e-6
    )
    optimizer = build(ours.items(), settings)
    decayed = [theirs[name] for name, (_, kind) in NAMED.items() if kind not in ("scalar", "table")]
    rest = [theirs[name] for name, (_, kind) in NAMED.items() if kind in ("scalar", "table")]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.97), eps=1e-6, foreach=False, fused=False)
    for step in range(6):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step()
        reference.step()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("poison", [1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_skipped_step_changes_no_bit(settings, poison: float, on_device: bool, monkeypatch):
    named = parameters()
    optimizer = build(named.items(), settings)
    for step in range(2):
        give_gradients(named, step)
        optimizer.step()
    before = bits(named, optimizer)
    for parameter in named.values():
        parameter.grad = torch.full_like(parameter, poison)
    if on_device:  # what an accelerator does, done here
        monkeypatch.setattr("ludus.optim.groups.READ_AT_ONCE", ())
    optimizer.step(skip=torch.tensor(True))
    assert bits(named, optimizer) == before
    give_gradients(named, 7)
    optimizer.step(skip=torch.tensor(False))
    assert bits(named, optimizer).keys() == before.keys()
    assert all(after != before[name] for name, after in bits(named, optimizer).items())


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("on_device", [False, True])
def test_steps_asked_about_but_not_skipped_are_the_same(settings, on_device: bool, monkeypatch):
    if on_device:
        monkeypatch.setattr("ludus.optim.groups.READ_AT_ONCE", ())
    asked, unasked = parameters(), parameters()
    first, second = build(asked.items(), settings), build(unasked.items(), settings)
    for step in range(3):
        give_gradients(asked, step)
        give_gradients(unasked, step)
        first.step(skip=torch.tensor(False))
        second.step()
    for name, parameter in asked.items():
        torch.testing.assert_close(parameter, unasked[name], atol=1e-7, rtol=1e-6)


def test_without_a_fused_kernel_the_steps_are_the_same(monkeypatch):
    ours, plain = parameters(), parameters()
    first = build(ours.items(), AdamWSettings())
    monkeypatch.setattr("ludus.optim.groups.FUSED", set())
    monkeypatch.setattr("ludus.optim.groups.READ_AT_ONCE", ())
    second = build(plain.items(), AdamWSettings())
    assert not second.parts["adamw"].fused
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(plain, step)
        first.step(skip=torch.tensor(step == 2))
        second.step(skip=torch.tensor(step == 2))
        second.load_state_dict(second.state_dict())
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, plain[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", KINDS)
def test_the_size_of_an_update_is_measured_when_asked_and_only_then(settings):
    named = parameters()
    optimizer = build(named.items(), settings)
    give_gradients(named, 0)
    optimizer.step()
    assert optimizer.update_ratio() == {}
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    optimizer.measure()
    give_gradients(named, 1)
    optimizer.step()
    found = optimizer.update_ratio()
    for kind in ROLES:
        names = [name for name, (_, expected) in NAMED.items() if expected == kind]
        moved = torch.cat([(named[name] - before[name]).flatten() for name in names]).norm()
        size = torch.cat([before[name].flatten() for name in names]).norm()
        assert found[kind] == pytest.approx(float((moved / size).detach()), rel=1e-4)
    optimizer.step()
    assert optimizer.update_ratio() == found


@pytest.mark.parametrize("settings", KINDS)
def test_a_model_of_one_role_is_trained_too(settings):
    for shape in ((6, 4), (6,)):
        named = parameters(**{"layers.0.weight": shape})
        optimizer = build(named.items(), settings)
        give_gradients(named, 0)
        optimizer.step()
        assert len(optimizer.rates()) == len(optimizer.parameters_by_role()) == 1


def test_an_update_does_not_import_the_compiler():
    """It takes longer to import than a small model takes to train."""
    code = (
        "import sys, torch\n"
        "from ludus.optim.groups import build\n"
        "from ludus.optim.settings import MuonSettings\n"
        "weight = torch.nn.Parameter(torch.eye(4))\n"
        "optimizer = build([('layers.0.weight', weight), ('lm_head.weight', torch.nn.Parameter(torch.eye(3)))], "
        "MuonSettings())\n"
        "weight.sum().backward()\n"
        "optimizer.step()\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
