import pytest
import torch

from ludus.optim.muon import Muon, Recipe


def matrix(*shape: int, seed: int = 0) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def muon(*parameters: torch.Tensor, rate: float = 0.02, decay: float = 0.0, **recipe) -> Muon:
    return Muon([{"params": list(parameters), "lr": rate, "weight_decay": decay}], recipe=Recipe(**recipe))


def walk(optimizer: Muon, parameters: list, steps: int, *, start: int = 0, skip: torch.Tensor | None = None) -> None:
    for step in range(start, start + steps):
        for index, parameter in enumerate(parameters):
            parameter.grad = matrix(*parameter.shape, seed=100 * step + index).detach()
        optimizer.step(skip=skip)


def remembered(optimizer: Muon) -> list[torch.Tensor]:
    return [value.clone() for state in optimizer.state.values() for value in state.values()]


@pytest.mark.oracle
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("scale", "theirs"), [("shape", "original"), ("adamw", "match_rms_adamw")])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (24, 8), (8, 24), (14, 12)])
def test_steps_are_those_of_pytorch(rows, columns, scale, theirs, nesterov, monkeypatch):
    ours_parameter, theirs_parameter = matrix(rows, columns), matrix(rows, columns)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # theirs rounds always; leave nothing to chance
    ours = muon(ours_parameter, decay=0.1, scale=scale, nesterov=nesterov)
    reference = torch.optim.Muon(
        [theirs_parameter], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=nesterov, adjust_lr_fn=theirs
    )
    for step in range(5):
        ours_parameter.grad = theirs_parameter.grad = matrix(rows, columns, seed=10 + step).detach()
        ours.step()
        reference.step()
    moved = (theirs_parameter - matrix(rows, columns)).norm()
    assert (ours_parameter - theirs_parameter).norm() / moved < 1e-5


@pytest.mark.parametrize("normalised", [False, True])
def test_a_stack_of_experts_is_so_many_matrices(normalised: bool):
    experts = matrix(3, 6, 10)
    alone = [torch.nn.Parameter(one.detach().clone()) for one in experts]
    together, apart = muon(experts, normalised=normalised), muon(*alone, normalised=normalised)
    for step in range(3):
        experts.grad = matrix(3, 6, 10, seed=step).detach()
        for one, gradient in zip(alone, experts.grad, strict=True):
            one.grad = gradient
        together.step()
        apart.step()
    torch.testing.assert_close(experts, torch.stack(list(alone)), atol=1e-6, rtol=0)


def test_scaled_for_adamw_an_entry_moves_by_a_fifth_of_the_rate():
    for rows, columns in ((16, 16), (48, 12), (12, 48)):
        one = matrix(rows, columns)
        optimizer = muon(one, rate=1.0, scale="adamw", method="polar_express", iterations=8)
        walk(optimizer, [one], 1)
        assert float((one - matrix(rows, columns)).detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.02)


def test_normalised_rows_move_alike_and_the_whole_as_far():
    rows = torch.logspace(-2, 0, 12)[:, None]

    def step(**recipe) -> torch.Tensor:
        one = matrix(12, 30)
        before = one.detach().clone()
        optimizer = muon(one, iterations=2, **recipe)  # so few that rows of small gradients stay behind
        one.grad = rows * matrix(12, 30, seed=1).detach()
        optimizer.step()
        return one.detach() - before

    plain, normalised = step(), step(normalised=True)
    assert plain.norm(dim=1).max() > 2 * plain.norm(dim=1).min()
    torch.testing.assert_close(normalised.norm(dim=1), normalised.norm(dim=1).mean().expand(12), rtol=1e-3, atol=0)
    torch.testing.assert_close(normalised.norm(), plain.norm(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("recipe", [{}, {"normalised": True}, {"momentum_warmup": 4}])
def test_skipped_on_the_device_every_bit_stays(recipe: dict):
    parameters = [matrix(4, 6), matrix(4, 6, seed=1), matrix(6, 4, seed=2), matrix(2, 4, 6, seed=3)]
    parameters[0].data[0, 0] = -0.0
    optimizer = muon(*parameters, decay=0.1, **recipe)
    walk(optimizer, parameters, 2)
    optimizer.state[parameters[0]]["momentum"][0, 0] = -0.0
    before = [one.detach().clone() for one in parameters], remembered(optimizer)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, torch.nan)
    parameters[1].grad = None
    optimizer.step(skip=torch.tensor(True))
    after = [one.detach() for one in parameters], remembered(optimizer)
    for old, new in zip(before[0] + before[1], after[0] + after[1], strict=True):
        assert old.numpy().tobytes() == new.numpy().tobytes()


@pytest.mark.parametrize("recipe", [{}, {"normalised": True}, {"momentum_warmup": 4}, {"nesterov": False}])
def test_not_skipped_on_the_device_it_is_the_same_step(recipe: dict):
    asked, unasked = ([matrix(4, 6), matrix(6, 4, seed=2)] for _ in range(2))
    walk(muon(*asked, decay=0.1, **recipe), asked, 3, skip=torch.tensor(False))
    walk(muon(*unasked, decay=0.1, **recipe), unasked, 3)
    for one, other in zip(asked, unasked, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-6)


def test_a_matrix_without_gradient_neither_moves_nor_changes_the_others():
    alone, one, still = matrix(4, 6), matrix(4, 6), matrix(4, 6, seed=5)
    first, second = muon(alone), muon(still, one)
    for step in range(3):
        alone.grad = one.grad = matrix(4, 6, seed=step).detach()
        first.step()
        second.step()
    torch.testing.assert_close(one, alone, atol=1e-6, rtol=0)
    assert torch.equal(still, matrix(4, 6, seed=5))
    assert not second.state[still]["momentum"].any()


def test_momentum_warms_up_over_accepted_updates():
    one = matrix(4, 6)
    optimizer = muon(one, momentum_warmup=4, momentum_start=0.5, momentum=0.9)
    kept = torch.zeros(4, 6)
    expected = iter([0.5, 0.6, 0.7, 0.8, 0.9, 0.9])
    for skip in (False, True, False, False, True, False, False, False):
        one.grad = matrix(4, 6, seed=3).detach()
        optimizer.step(skip=torch.tensor(skip))
        kept = kept if skip else kept.lerp(one.grad, 1 - next(expected))
        torch.testing.assert_close(optimizer.state[one]["momentum"], kept, atol=1e-6, rtol=0)
    assert next(expected, None) is None


@pytest.mark.parametrize("recipe", [{}, {"normalised": True}, {"momentum_warmup": 5, "method": "polar_express"}])
def test_remembered_state_continues_bit_for_bit(recipe: dict):
    parameters = [matrix(4, 6), matrix(4, 6, seed=1), matrix(2, 6, 4, seed=2)]
    optimizer = muon(*parameters, **recipe)
    walk(optimizer, parameters, 3)
    copies = [torch.nn.Parameter(one.detach().clone()) for one in parameters]
    again = muon(*copies, **recipe)
    pairs = zip(copies, parameters, strict=True)
    again.remember({copy: {name: value.clone() for name, value in optimizer.state[one].items()} for copy, one in pairs})
    walk(optimizer, parameters, 4, start=3)
    walk(again, copies, 4, start=3)
    assert all(torch.equal(one, copy) for one, copy in zip(parameters, copies, strict=True))
