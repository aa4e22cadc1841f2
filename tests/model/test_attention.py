import pytest
import torch

from ludus.model.attention import BACKENDS, document_mask, document_positions, rotary_angles, rotate


def heads(batch: int = 2, count: int = 4, time: int = 7, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, count, time, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (4, 2), (6, 1)])
def test_the_backends_agree(queries: int, keys: int, masked: bool):
    mask = document_mask(torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, -1, -1]])) if masked else None
    inputs = heads(count=queries), heads(count=keys, seed=1), heads(count=keys, seed=2)
    plain, fused = (BACKENDS[name](*inputs, mask) for name in ("plain", "fused"))
    torch.testing.assert_close(plain, fused, rtol=1e-5, atol=1e-6)


def test_attention_is_a_weighted_mean_of_the_values_that_may_be_seen():
    queries, keys, values = heads(1, 1), heads(1, 1, seed=1), heads(1, 1, seed=2)
    mixed = BACKENDS["plain"](queries, keys, values, None)
    scores = queries[0, 0, 3] @ keys[0, 0, :4].T / 8**0.5
    torch.testing.assert_close(mixed[0, 0, 3], scores.softmax(0) @ values[0, 0, :4])


def test_float64_attention_is_as_exact_as_float64():
    inputs = [heads(seed=seed).double() for seed in range(3)]
    plain, fused = (BACKENDS[name](*inputs, None) for name in ("plain", "fused"))
    torch.testing.assert_close(plain, fused, rtol=1e-13, atol=1e-13)


def test_documents_number_positions_and_close_the_mask():
    documents = torch.tensor([[0, 0, 1, 1, 1, -1]])
    assert document_positions(documents).tolist() == [[0, 1, 0, 1, 2, 0]]
    seen = document_mask(documents)[0, 0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_rotated_products_depend_on_the_distance_alone():
    query, key = heads(1, 1, 1), heads(1, 1, 1, seed=1)

    def product(at: int, other: int) -> torch.Tensor:
        turned = []
        for tensor, position in ((query, at), (key, other)):
            angles = rotary_angles(torch.tensor([[position]]), 8, 10_000.0)
            turned.append(rotate(tensor, angles.cos(), angles.sin()))
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(3, 1), product(12, 10), rtol=1e-4, atol=1e-5)
    assert abs(product(3, 1) - product(3, 2)) > 1e-3


def test_position_zero_is_not_turned():
    angles = rotary_angles(torch.zeros(1, 7, dtype=torch.long), 8, 10_000.0)
    assert torch.equal(rotate(heads(), angles.cos(), angles.sin()), heads())
