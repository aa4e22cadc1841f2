from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ludus.base.errors import CheckpointError, ConfigError, MissingExtra
from ludus.optim import compact
from ludus.optim.adamw import AdamW
from ludus.optim.compact import AdamW8bit, PagedAdamW, adamw
from ludus.optim.groups import Optimizer
from ludus.optim.settings import AdamWSettings

HOW = {"betas": (0.9, 0.95), "epsilon": 1e-8, "fused": True}
SHAPES = {"large": (64, 128), "small": (100,), "uneven": (77, 67)}


class Fit:
    """Three tensors that a noisy problem pulls at, and an optimizer over them."""

    def __init__(self, make, **how) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weights = [nn.Parameter(torch.randn(shape, generator=generator) * 0.05) for shape in SHAPES.values()]
        self.starts = [weight.detach().clone() for weight in self.weights]
        self.generator = torch.Generator().manual_seed(5)
        self.data = torch.randn(512, 128, generator=generator)
        self.optimizer = make(self.weights, **how)

    def run(self, steps: int) -> "Fit":
        for _ in range(steps):
            self.pull()
            self.optimizer.step()
        return self

    def pull(self) -> None:
        first, second, third = self.weights
        rows = self.data[torch.randint(0, 512, (64,), generator=self.generator)]
        outcome = (rows @ first.T).tanh().sum(1) - second.sum() - (third * 3).sin().sum() * 0.1
        for weight in self.weights:
            weight.grad = None
        outcome.square().mean().backward()

    def moved(self) -> Tensor:
        return torch.cat(
            [(now.detach() - start).flatten() for now, start in zip(self.weights, self.starts, strict=True)]
        )


def ours(state: str):
    def make(weights: list[nn.Parameter]) -> Optimizer:
        part = adamw(state, [{"params": weights, "lr": 1e-2, "weight_decay": 0.1, "roles": ["matrix"]}], **HOW)  # type: ignore[arg-type]
        return Optimizer({"adamw": part}, dict(zip(weights, SHAPES, strict=True)), {"matrix": weights})

    return make


def far(one: Fit, other: Fit) -> float:
    """Return how far apart two fits have moved, relative to how far the second has moved."""
    return float((one.moved() - other.moved()).norm() / other.moved().norm())


def copied(state: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {name: {item: value.clone() for item, value in items.items()} for name, items in state.items()}


def test_the_first_update_is_adamws_and_the_next_stay_close():
    assert far(Fit(ours("8bit")).run(1), Fit(ours("float32")).run(1)) < 1e-6  # nothing was encoded yet
    assert far(Fit(ours("8bit")).run(3), Fit(ours("float32")).run(3)) < 0.02
    assert far(Fit(ours("8bit")).run(10), Fit(ours("float32")).run(10)) < 0.05


def test_small_tensors_are_updated_as_ever():
    exact = {}
    for state in ("float32", "8bit"):
        weight = nn.Parameter(torch.linspace(-1, 1, compact.SMALLEST - 1))
        part = adamw(state, [{"params": [weight], "lr": 1e-2, "weight_decay": 0.1}], **HOW)  # type: ignore[arg-type]
        for step in range(5):
            weight.grad = (weight.detach() * 7 + step).sin()
            part.step()
        exact[state] = weight.detach(), part.state[weight]["exp_avg"]
    assert all(torch.equal(*pair) for pair in zip(*exact.values(), strict=True))


def test_moments_take_two_bytes_a_weight_and_a_float_for_256():
    fit = Fit(ours("8bit")).run(1)
    state = fit.optimizer.state_dict()
    count = fit.weights[0].numel()
    assert sum(value.nbytes for value in state["large"].values()) == 2 * count + 2 * 4 * count // 256 + 4
    assert sum(value.nbytes for value in state["small"].values()) == 8 * 100 + 4


def test_a_run_that_goes_on_is_the_uninterrupted_one_to_the_bit():
    whole, first = Fit(ours("8bit")).run(9), Fit(ours("8bit")).run(4)
    second = Fit(ours("8bit"))
    for weight, found in zip(second.weights, first.weights, strict=True):
        weight.data.copy_(found.data)
    second.optimizer.load_state_dict(copied(first.optimizer.state_dict()))
    second.generator.set_state(first.generator.get_state())
    second.run(5)
    assert all(torch.equal(one, other) for one, other in zip(second.weights, whole.weights, strict=True))
    both = second.optimizer.state_dict(), whole.optimizer.state_dict()
    assert all(torch.equal(both[0][name][item], both[1][name][item]) for name in both[0] for item in both[0][name])


def test_a_skipped_update_leaves_every_byte():
    fit = Fit(ours("8bit")).run(3)
    before = [weight.detach().clone() for weight in fit.weights], copied(fit.optimizer.state_dict())
    for weight in fit.weights:
        weight.grad = torch.full_like(weight, float("nan"))
    fit.optimizer.parts["adamw"].step(skip=torch.tensor(True))  # as on an accelerator, where the host does not ask
    assert all(torch.equal(now, then) for now, then in zip(fit.weights, before[0], strict=True))
    after = fit.optimizer.state_dict()
    assert all(torch.equal(after[name][item], before[1][name][item]) for name in after for item in after[name])
    one, other = Fit(ours("8bit")).run(2), Fit(ours("8bit")).run(2)
    for fit, skip in ((one, None), (other, torch.tensor(False))):
        fit.pull()
        fit.optimizer.parts["adamw"].step(skip=skip)
    assert all(torch.equal(*pair) for pair in zip(one.weights, other.weights, strict=True))


def test_weights_that_never_had_a_gradient_stay_where_they_are():
    weight = nn.Parameter(torch.ones(64, 128))
    part = adamw("8bit", [{"params": [weight], "lr": 1e-2, "weight_decay": 0.0}], **HOW)
    for _ in range(5):
        weight.grad = torch.zeros(64, 128)
        weight.grad[:, ::2] = 1.0  # in the same blocks as those without
        part.step()
    assert torch.equal(weight[:, 1::2], torch.ones(64, 64))
    assert (weight[:, ::2] < 1).all()


def test_weights_that_do_not_lie_in_a_row_are_updated_too():
    row, column = nn.Parameter(torch.randn(128, 64).t().contiguous()), nn.Parameter(torch.empty(0))
    column.data = row.detach().t().contiguous().t()
    assert not column.is_contiguous()
    for weight in (row, column):
        weight.grad = torch.arange(64 * 128.0).view(64, 128).sin()
        adamw("8bit", [{"params": [weight], "lr": 1e-2, "weight_decay": 0.1}], **HOW).step()
    assert torch.equal(row, column)


def test_a_step_on_tensors_without_content_leaves_nothing_behind():
    def step() -> Tensor:
        weight = nn.Parameter(torch.ones(64, 128))
        weight.grad = torch.ones(64, 128)
        adamw("8bit", [{"params": [weight], "lr": 1e-2, "weight_decay": 0.0}], **HOW).step()
        return weight.detach()

    for _ in range(2):  # as in planning: before the tables are made, and after
        with FakeTensorMode():
            assert type(step()) is FakeTensor
        torch.testing.assert_close(step(), torch.full((64, 128), 0.99))


def test_moments_kept_in_another_way_are_refused():
    state = copied(Fit(ours("float32")).run(1).optimizer.state_dict())
    with pytest.raises(CheckpointError, match="not in eight bits"):
        Fit(ours("8bit")).optimizer.load_state_dict(state)


def test_the_settings_name_the_ways():
    ways = {"float32": AdamW, "8bit": AdamW8bit}
    for state, kind in ways.items():
        assert type(adamw(AdamWSettings(state=state).state, [], **HOW)) is kind  # type: ignore[arg-type]


def test_paged_moments_are_refused_without_a_gpu_or_bitsandbytes(monkeypatch):
    def group(device: str) -> list[dict]:
        return [{"params": [SimpleNamespace(device=torch.device(device))]}]

    with pytest.raises(ConfigError, match="NVIDIA"):
        adamw("paged", group("cpu"), **HOW)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install"):
        adamw("paged", group("cuda"), **HOW)


@pytest.mark.oracle
def test_eight_bits_stray_from_float32_as_far_as_those_of_bitsandbytes():
    theirs = pytest.importorskip("bitsandbytes").optim.AdamW8bit
    peer = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    for steps, apart in ((1, 1e-6), (3, 2e-3), (10, 1e-2)):
        mine, their, exact = Fit(ours("8bit")).run(steps), Fit(theirs, **peer).run(steps), Fit(ours("float32"))
        exact.run(steps)
        assert far(mine, their) < apart  # they round to a coarse grid before
        assert far(mine, exact) < 1.1 * far(their, exact) + 1e-6


@pytest.mark.oracle
def test_paged_moments_are_updated_as_float32_ones(monkeypatch):
    functional = pytest.importorskip("bitsandbytes").functional
    monkeypatch.setattr(PagedAdamW, "__init__", AdamW.__init__)  # its kernel runs on a processor too, without pages
    monkeypatch.setattr(functional, "get_paged", lambda *shape, dtype, device: torch.empty(*shape, dtype=dtype))
    monkeypatch.setattr(functional, "fill", lambda tensor, value: tensor.fill_(value))
    monkeypatch.setattr(compact, "PAGED", 5000)
    paged, exact = Fit(ours("paged")).run(6), Fit(ours("float32")).run(6)
    assert far(paged, exact) < 1e-5
    again = Fit(ours("paged"))
    again.optimizer.load_state_dict(copied(paged.optimizer.state_dict()))
    for items, found in zip(again.optimizer.state_dict().values(), paged.optimizer.state_dict().values(), strict=True):
        assert all(torch.equal(items[name], found[name]) for name in found)
    before = copied(paged.optimizer.state_dict())
    paged.optimizer.parts["adamw"].step(skip=torch.tensor(True))
    after = paged.optimizer.state_dict()
    assert all(torch.equal(after[name][item], before[name][item]) for name in after for item in after[name])
