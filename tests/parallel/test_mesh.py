import pytest
import torch

from ludus.parallel.mesh import Mesh, current


def test_one_process_is_a_mesh_of_one():
    mesh = current()
    assert type(mesh) is Mesh
    assert (mesh.rank, mesh.ranks) == (0, 1)
    assert mesh.sum(torch.tensor(2.5)) == mesh.sum(2.5) == 2.5


def test_clipping_scales_all_gradients_and_returns_the_norm_before(tiny):
    model = tiny()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert Mesh().clip_(model, 1.0) == pytest.approx(count**0.5)
    assert Mesh().clip_(model, 1.0) == pytest.approx(1.0, rel=1e-4)
    assert Mesh().clip_(model, 5.0) == pytest.approx(1.0, rel=1e-4)
    assert torch.allclose(model.norm.weight.grad, torch.tensor(count**-0.5))


def test_gradients_are_summed_only_at_the_last_micro_batch(tiny):
    class Counting(Mesh):
        summed = 0

        def sum_gradients(self, model) -> None:
            self.summed += 1

    mesh = Counting()
    for on in (False, False, True):
        with mesh.gradient_sync(tiny(), on=on):
            pass
    assert mesh.summed == 1
