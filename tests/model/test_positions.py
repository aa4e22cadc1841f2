import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ludus.model.architecture import RopeScaling
from ludus.model.positions import (
    Rotation,
    rotary_angles,
    rotary_frequencies,
    rotate,
    rotate_interleaved,
    yarn_attention,
)

FREQUENCIES = 10_000.0 ** (-torch.arange(0, 8, 2) / 8)


def heads(time: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, time, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("turn", [rotate, rotate_interleaved])
def test_rotated_products_depend_on_the_distance_alone(turn):
    query, key = heads(1), heads(1, seed=1)

    def product(at: int, other: int) -> torch.Tensor:
        turned = []
        for tensor, position in ((query, at), (key, other)):
            angles = rotary_angles(torch.tensor([[position]]), FREQUENCIES)
            turned.append(turn(tensor, angles.cos(), angles.sin()))
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(3, 1), product(12, 10), rtol=1e-4, atol=1e-5)
    assert abs(product(3, 1) - product(3, 2)) > 1e-3


@pytest.mark.parametrize("turn", [rotate, rotate_interleaved])
def test_the_way_back_turns_back(turn):
    angles = rotary_angles(torch.arange(7)[None], FREQUENCIES).double()
    inputs = heads().double()[:1, :1].requires_grad_()
    assert torch.autograd.gradcheck(lambda each: turn(each, 1.3 * angles.cos(), 1.3 * angles.sin()), inputs)


@pytest.mark.parametrize("turn", [rotate, rotate_interleaved])
def test_position_zero_is_not_turned(turn):
    angles = rotary_angles(torch.zeros(1, 7, dtype=torch.long), FREQUENCIES)
    assert torch.equal(turn(heads(), angles.cos(), angles.sin()), heads())


def test_channels_beyond_the_rotary_ones_stay_as_they_are(shape):
    rotation = Rotation(shape(position="rope_interleaved", rotary_dims=4), torch.arange(7)[None])
    turned = rotation(heads())
    assert torch.equal(turned[..., 4:], heads()[..., 4:])
    assert not torch.allclose(turned[..., 1:, :4], heads()[..., 1:, :4])


def test_the_two_layouts_are_one_rotation_of_reordered_channels(shape):
    apart, together = (Rotation(shape(position=kind), torch.arange(7)[None]) for kind in ("rope", "rope_interleaved"))
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # even channels first
    torch.testing.assert_close(apart(heads()[..., order]), together(heads())[..., order])


@pytest.mark.oracle
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize(
    ("scaling", "theirs"),
    [
        (RopeScaling("linear", 4.0), {"rope_type": "linear", "factor": 4.0}),
        (
            RopeScaling("llama3", 8.0, 8192, 1.0, 4.0),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        (
            RopeScaling("yarn", 4.0, 4096),
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
        ),
        (
            RopeScaling("yarn", 16.0, 32768, beta_fast=24.0, beta_slow=2.0, attention_factor=1.3),
            {
                "rope_type": "yarn",
                "factor": 16.0,
                "beta_fast": 24.0,
                "beta_slow": 2.0,
                "attention_factor": 1.3,
                "original_max_position_embeddings": 32768,
            },
        ),
    ],
    ids=["linear", "llama3", "yarn", "yarn with its own factors"],
)
def test_stretched_frequencies_are_those_of_transformers(shape, scaling: RopeScaling, theirs: dict, theta: float):
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        head_dim=128,
        max_position_embeddings=131072,
        rope_parameters={**theirs, "rope_theta": theta},
    )
    expected, factor = ROPE_INIT_FUNCTIONS[scaling.kind](config, "cpu")
    found, scale = rotary_frequencies(shape(head_dim=128, rope_theta=theta, rope_scaling=scaling), "cpu")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert scale == pytest.approx(factor)


def test_the_temperature_of_yarn_grows_with_the_factor():
    assert yarn_attention(RopeScaling("yarn", 1.0)) == 1.0
    assert yarn_attention(RopeScaling("yarn", 4.0)) == pytest.approx(1.1386294)
