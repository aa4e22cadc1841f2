import pytest
import torch
import torch.nn.functional as F

from ludus.model.feedforward import FeedForward, activate

NUMBERS = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])


def test_activations_are_what_they_are_called():
    assert torch.equal(activate("relu2", NUMBERS), torch.tensor([0.0, 0.0, 0.0, 0.25, 9.0]))
    torch.testing.assert_close(activate("gelu", NUMBERS), NUMBERS * torch.distributions.Normal(0, 1).cdf(NUMBERS))
    assert not torch.equal(activate("gelu", NUMBERS), activate("gelu_tanh", NUMBERS))
    torch.testing.assert_close(activate("gelu", NUMBERS), activate("gelu_tanh", NUMBERS), rtol=0, atol=1e-3)
    assert torch.equal(activate("swiglu", NUMBERS, NUMBERS), F.silu(NUMBERS) * NUMBERS)


def test_the_gradient_of_the_squared_relu_is_that_of_finite_differences():
    inputs = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: activate("relu2", x), inputs)


@pytest.mark.parametrize(("activation", "layers"), [("swiglu", 3), ("gelu", 2), ("relu2", 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_only_a_gate_needs_a_third_layer(shape, activation: str, layers: int, bias: bool):
    made = FeedForward(shape(activation=activation, mlp_bias=bias))
    assert len(list(made.parameters())) == layers * (1 + bias)
