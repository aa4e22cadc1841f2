import pytest
import torch

from ludus.optim.muon import Muon, Recipe
from ludus.optim.orthogonal import orthogonalise


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (24, 8), (8, 24)])
def test_singular_values_come_near_one_and_directions_stay(rows: int, columns: int):
    one = matrix(rows, columns)
    found = orthogonalise(one[None])[0]
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() <= values.max() < 1.3
    left, _, right = torch.linalg.svd(one, full_matrices=False)
    inner = left.T @ found @ right.T
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), atol=1e-4, rtol=0)
    assert inner.diagonal().min() > 0


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_matrices_together_are_orthogonalised_as_alone(precision: torch.dtype):
    stack = torch.stack([matrix(12, 20, seed) for seed in range(3)])
    together = orthogonalise(stack, precision=precision)
    alone = torch.cat([orthogonalise(one[None], precision=precision) for one in stack])
    tolerance = 1e-5 if precision == torch.float32 else 0.1
    torch.testing.assert_close(together.float(), alone.float(), atol=tolerance, rtol=0)


def test_the_scale_of_a_gradient_does_not_matter():
    one = matrix(12, 20)
    torch.testing.assert_close(orthogonalise(one[None]), orthogonalise(1e-3 * one[None]), atol=2e-3, rtol=0)


def test_a_gradient_of_zero_moves_nothing():
    assert not orthogonalise(torch.zeros(1, 4, 6)).any()


@pytest.mark.oracle
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (24, 8), (8, 24)])
def test_steps_are_those_of_pytorch(rows: int, columns: int, monkeypatch):
    theirs = getattr(torch.optim, "Muon", None)
    if theirs is None:
        pytest.skip("this PyTorch has no Muon")
    ours_parameter, theirs_parameter = (torch.nn.Parameter(matrix(rows, columns)) for _ in range(2))
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # theirs rounds always; leave nothing to chance
    ours = Muon([{"params": [ours_parameter], "lr": 0.02, "weight_decay": 0.1}], recipe=Recipe())
    reference = theirs([theirs_parameter], lr=0.02, weight_decay=0.1, momentum=0.95)
    for step in range(5):
        ours_parameter.grad = theirs_parameter.grad = matrix(rows, columns, seed=10 + step)
        ours.step()
        reference.step()
    moved = (theirs_parameter - matrix(rows, columns)).norm()
    assert (ours_parameter - theirs_parameter).norm() / moved < 1e-5
