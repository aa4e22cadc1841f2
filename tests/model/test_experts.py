import pytest
import torch
from switches import SWITCHES

from ludus.model.architecture import Experts
from ludus.model.experts import Balance, Mixture, Router

EXPERTS = Experts(count=5, chosen=2, shared=1, hidden=12, balance_rate=0.01)


def mixture(shape, **changes) -> Mixture:
    made = Mixture(shape(**changes), EXPERTS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return made


def inputs(seed: int = 1) -> torch.Tensor:
    return torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_each_token_gets_what_its_experts_say_one_by_one(shape, activation: str):
    layer, x = mixture(shape, activation=activation), inputs()
    found = layer(x)
    scores = (x @ layer.router.weight.T).sigmoid()
    for row, time in ((0, 0), (1, 3), (2, 6)):
        best = scores[row, time].topk(2)
        expected = layer.shared(x[row, time])
        for weight, expert in zip(best.values / best.values.sum(), best.indices, strict=True):
            gate = None if layer.experts.gate_proj is None else x[row, time] @ layer.experts.gate_proj[expert].T
            up = x[row, time] @ layer.experts.up_proj[expert].T
            inner = up.relu().square() if gate is None else torch.nn.functional.silu(gate) * up
            expected = expected + weight * (inner @ layer.experts.down_proj[expert].T)
        torch.testing.assert_close(found[row, time], expected, rtol=1e-5, atol=1e-5)


def test_a_bias_moves_the_choice_and_not_the_weights(shape):
    layer, x = mixture(shape), inputs().flatten(0, 1)
    layer.router.bias[3] = 10.0
    choice, weights = layer.router(x, None)
    assert (choice == 3).any(dim=1).all()
    scores = (x @ layer.router.weight.T).sigmoid().gather(1, choice)
    torch.testing.assert_close(weights, scores / scores.sum(1, keepdim=True))


def test_loads_are_counted_while_training_and_without_padding(shape):
    layer, real = mixture(shape), torch.ones(3, 7, dtype=torch.bool)
    layer.eval()(inputs())
    assert not layer.router.load.any()
    real[1, 2:] = False
    layer.train()(inputs(), real)
    assert float(layer.router.load.sum()) == 2 * int(real.sum())


def test_balancing_evens_out_the_loads(shape):
    layer = mixture(shape).train()
    with torch.no_grad():
        layer.router.weight[0] += 0.3 * inputs().mean((0, 1)).sign()  # everyone likes the first expert
    x = inputs().mean((0, 1)).sign() + 0.5 * inputs(2)
    balance = Balance(layer, rate=0.01)
    layer(x)
    before = balance()
    for _ in range(100):
        layer(x)
        after = balance()
    assert before["expert_load_maximum"] > 2
    assert after["expert_load_maximum"] < 1.5
    assert after["expert_load_minimum"] > 0.5
    assert not layer.router.load.any()


def test_the_biases_are_state_of_the_model_and_of_the_balance(tiny):
    model, other = tiny(**SWITCHES["mixture"]).train(), tiny(**SWITCHES["mixture"])
    balance = Balance(model, rate=0.1)
    model(torch.arange(40).view(2, 20))
    balance()
    name = "layers.1.mlp.router"
    assert f"{name}.bias" in model.state_dict()
    assert model.state_dict()[f"{name}.bias"].any()
    resumed = Balance(other, rate=0.1)
    resumed.load_state_dict(balance.state_dict())
    assert torch.equal(other.layers[1].mlp.router.bias, model.layers[1].mlp.router.bias)
    assert "bias" not in dict(model.layers[1].mlp.router.named_parameters())


def test_loads_may_be_added_over_ranks(shape):
    layer = mixture(shape).train()
    layer(inputs())
    Balance(layer, rate=0.5, total=lambda load: torch.tensor([0.0, 0.0, 0.0, 0.0, 100.0]))()
    assert layer.router.bias.tolist() == [0.5, 0.5, 0.5, 0.5, -0.5]


def test_a_model_without_experts_has_nothing_to_balance(tiny):
    assert Balance(tiny(), rate=0.1)() == {}
    assert not [module for module in tiny().modules() if isinstance(module, Router)]
