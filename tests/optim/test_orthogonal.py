from itertools import pairwise

import pytest
import torch

from ludus.optim.orthogonal import LEAST, POLAR_EXPRESS, coefficients, orthogonalise

SHAPES = [(16, 16), (24, 8), (8, 24), (20, 16)]
CUSHION, SAFETY = 0.02407327424182761, 1.01  # of the paper's appendix: no interval narrower below, a little room above


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def stack_with(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Make a stack of one matrix that has these singular values."""
    short = min(rows, columns)
    left, right = (torch.linalg.qr(matrix(size, short, seed))[0] for seed, size in enumerate((rows, columns)))
    return (left @ values.diag() @ right.T)[None]


def quintic(least: float, most: float) -> torch.Tensor:
    """Find the odd quintic with the least largest |1 - p| on an interval, by Remez's exchange."""
    if least / most > 1 - 5e-6:
        return torch.tensor([15 / (8 * most), -10 / (8 * most**3), 3 / (8 * most**5)], dtype=torch.float64)
    inner = torch.tensor([(3 * least + most) / 4, (least + 3 * most) / 4], dtype=torch.float64)
    ends = torch.tensor([least, most], dtype=torch.float64)
    signs, ones = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for _ in range(60):
        points = torch.cat((ends[:1], inner, ends[1:]))
        a, b, c, _ = torch.linalg.solve(torch.stack((points, points**3, points**5, signs), dim=1), ones)
        root = (9 * b * b - 20 * a * c).sqrt()
        inner = (torch.stack((-3 * b - root, -3 * b + root)) / (10 * c)).sqrt().sort().values  # where p' is 0
    return torch.stack((a, b, c))


def apply(triple: torch.Tensor | tuple, x: torch.Tensor | float) -> torch.Tensor:
    a, b, c = triple
    return a * x + b * x**3 + c * x**5


def derived(iterations: int) -> torch.Tensor:
    """Compose greedily: each polynomial is best for the interval that the ones before it leave."""
    least, most, found = LEAST[min(iterations, 5)], 1.0, []
    for _ in range(iterations):
        best = quintic(max(least, CUSHION * most), most)
        best = best * 2 / (apply(best, least) + apply(best, most)) if CUSHION * most > least else best
        least = float(apply(best, least))
        most = 2 - least
        found.append(best)
    room = torch.tensor([SAFETY, SAFETY**3, SAFETY**5], dtype=torch.float64)
    return torch.stack([*(one / room for one in found[:-1]), found[-1]])


@pytest.mark.parametrize("iterations", POLAR_EXPRESS)
def test_polar_express_is_the_greedy_minimax_composition(iterations: int):
    known = torch.tensor(coefficients("polar_express", iterations), dtype=torch.float64)
    torch.testing.assert_close(known, derived(iterations), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
def test_singular_values_come_near_one_and_directions_stay(rows: int, columns: int, method):
    one = matrix(rows, columns)
    found = orthogonalise(one[None], method=method)[0]
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() <= values.max() < 1.3
    left, _, right = torch.linalg.svd(one, full_matrices=False)
    inner = left.T @ found @ right.T
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), atol=1e-4, rtol=0)
    assert inner.diagonal().min() > 0


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(48, 48), (40, 96)])
def test_polar_express_comes_closer_to_one_than_newton_schulz(precision: torch.dtype, rows: int, columns: int):
    spread = stack_with(torch.logspace(0, -2, min(rows, columns)), rows, columns)

    def farthest(method, iterations: int = 5) -> float:
        found = orthogonalise(spread, method=method, iterations=iterations, precision=precision)
        return float((torch.linalg.svdvals(found[0].float()) - 1).abs().max())

    assert farthest("polar_express") < 0.6 * farthest("newton_schulz")
    assert farthest("polar_express", 8) < (1e-4 if precision == torch.float32 else 0.05)


def test_each_iteration_of_polar_express_comes_closer():
    x = torch.logspace(-2, 0, 200, dtype=torch.float64)
    reached = []
    for iterations in (3, 4, 5, 6, 7):
        y = x
        for triple in coefficients("polar_express", iterations):
            y = apply(triple, y)
        reached.append(float((1 - y[x > LEAST[3]]).abs().max()))
    # Five iterations begin lower than four, so they need not be closer higher up; from there on each is.
    assert reached[1] < reached[0]
    assert all(later < earlier for earlier, later in pairwise(reached[2:]))


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
@pytest.mark.parametrize("values", [[1.0] * 4 + [1e-3] * 28, [1.0] + [0.03] * 31, [1.0] * 32, [1.0] * 2 + [0.0] * 30])
@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (32, 96), (96, 32)])
def test_no_spectrum_blows_up_in_bfloat16(method, values: list[float], rows: int, columns: int):
    found = orthogonalise(
        stack_with(torch.tensor(values), rows, columns), method=method, precision=torch.bfloat16, iterations=5
    )
    assert torch.linalg.svdvals(found[0].float()).max() < 1.4


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_matrices_together_are_orthogonalised_as_alone(precision: torch.dtype):
    stack = torch.stack([matrix(12, 20, seed) for seed in range(3)])
    together = orthogonalise(stack, precision=precision)
    alone = torch.cat([orthogonalise(one[None], precision=precision) for one in stack])
    tolerance = 1e-5 if precision == torch.float32 else 0.1
    torch.testing.assert_close(together.float(), alone.float(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5, 8])
def test_the_short_way_over_the_gram_matrix_is_the_long_way(iterations: int):
    one = matrix(6, 18).double()
    x = one / one.norm()
    for a, b, c in coefficients("newton_schulz", iterations):
        x = a * x + (b * x @ x.T + c * x @ x.T @ x @ x.T) @ x
    for given, expected in ((one, x), (one.T, x.T)):
        found = orthogonalise(given[None], iterations=iterations, precision=torch.float64)[0]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
def test_the_scale_of_a_gradient_does_not_matter(method):
    one = matrix(12, 20)[None]
    torch.testing.assert_close(
        orthogonalise(one, method=method), orthogonalise(1e-3 * one, method=method), atol=2e-3, rtol=0
    )


def test_a_gradient_of_zero_moves_nothing():
    assert not orthogonalise(torch.zeros(1, 4, 6)).any()
