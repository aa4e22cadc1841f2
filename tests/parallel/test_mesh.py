import pytest
import torch

from ludus.parallel.mesh import Mesh, current


def test_one_process_is_a_mesh_of_one():
    mesh = current()
    assert type(mesh) is Mesh
    assert (mesh.rank, mesh.ranks) == (0, 1)
    assert mesh.sum(torch.tensor(2.5)) == mesh.sum(2.5) == 2.5
    sums = {"loss": torch.tensor(2.5), "right": torch.tensor(3), "weight": 0.1}
    assert mesh.sum_all(sums) == {"loss": 2.5, "right": 3.0, "weight": 0.1}
    assert mesh.sum_all({}) == {}


def filled(model, value: float):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)
    return model


def test_clipping_scales_all_gradients_and_returns_the_norm_before(tiny):
    model = filled(tiny(), 1.0)
    count = sum(parameter.numel() for parameter in model.parameters())
    norms = [Mesh().clip_(model, limit) for limit in (1.0, 1.0, 5.0)]
    assert all(norm.shape == () and norm.dtype == torch.float32 for norm in norms)
    assert [float(norm) for norm in norms] == pytest.approx([count**0.5, 1.0, 1.0], rel=1e-4)
    assert torch.allclose(model.norm.weight.grad, torch.tensor(count**-0.5))


def test_clipping_is_that_of_torch(tiny):
    ours, theirs = filled(tiny(), 0.3), filled(tiny(), 0.3)
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.7)
    torch.testing.assert_close(Mesh().clip_(ours, 0.7), norm)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("limit", [0.01, 1e9])
@pytest.mark.parametrize("scale", [1024.0, torch.tensor(1024.0)])
def test_a_loss_scale_is_undone_before_clipping(tiny, limit: float, scale):
    plain, scaled = filled(tiny(), 0.25), filled(tiny(), 0.25 * 1024)
    assert Mesh().clip_(plain, limit) == Mesh().clip_(scaled, limit, scale=scale)
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_unusable_gradient_has_an_unusable_norm(tiny, value: float):
    model = filled(tiny(), 1.0)
    model.norm.weight.grad[3] = value
    assert not Mesh().clip_(model, 1.0).isfinite()


def test_clipping_makes_its_tensors_where_the_gradients_are(tiny):
    assert Mesh().clip_(filled(tiny().to("meta"), 1.0), 1.0).device.type == "meta"


def test_a_frozen_model_has_no_norm(tiny):
    assert Mesh().clip_(tiny(), 1.0) == 0


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
