"""The nearest orthogonal matrix, by matrix products alone: Newton-Schulz and Polar Express.

Both iterate an odd polynomial x -> a x + b x^3 + c x^5 on the singular values: Newton-Schulz the same one, which is
steep at 0 and leaves them between 0.7 and 1.2; Polar Express one made for each iteration, which brings them to 1.
Matrices of one shape are taken together. Which matrices, and what is done with the result, is `muon`'s business.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Method = Literal["newton_schulz", "polar_express"]
Quintic = tuple[float, float, float]

NEWTON_SCHULZ: Quintic = (3.4445, -4.7750, 2.0315)  # steep at 0, so that five iterations bring singular values near 1

# Each triple minimises the largest |1 - p(x)| over the interval where the triples before it have put singular values of
# [least, 1]; all but the last are evaluated at x / 1.01, so that what bfloat16 rounds upwards stays within. Few
# iterations cannot lift values as small as many can. tests/optim/test_orthogonal.py derives all of them.
LEAST = {3: 3e-2, 4: 1e-2, 5: 1e-3}
POLAR_EXPRESS: dict[int, tuple[Quintic, ...]] = {
    3: (
        (7.289631, -20.133335, 14.424745),
        (2.888652, -2.118221, 0.452450),
        (2.046310, -1.429475, 0.393352),
    ),
    4: (
        (7.910261, -22.078822, 15.869114),
        (3.607345, -2.646669, 0.511040),
        (2.644818, -1.926928, 0.431511),
        (1.958893, -1.340357, 0.384144),
    ),
    5: (
        (8.205160, -22.901935, 16.460725),
        (4.066395, -2.861154, 0.518400),
        (3.909595, -2.823352, 0.525037),
        (3.285564, -2.415302, 0.485294),
        (2.300652, -1.668904, 0.418807),
    ),
    6: (
        (8.205160, -22.901935, 16.460725),
        (4.066395, -2.861154, 0.518400),
        (3.909595, -2.823352, 0.525037),
        (3.285564, -2.415302, 0.485294),
        (2.277873, -1.619822, 0.398481),
        (1.891301, -1.267996, 0.376804),
    ),
    7: (
        (8.205160, -22.901935, 16.460725),
        (4.066395, -2.861154, 0.518400),
        (3.909595, -2.823352, 0.525037),
        (3.285564, -2.415302, 0.485294),
        (2.277873, -1.619822, 0.398481),
        (1.872576, -1.230704, 0.358516),
        (1.875001, -1.250002, 0.375000),
    ),
    8: (
        (8.205160, -22.901935, 16.460725),
        (4.066395, -2.861154, 0.518400),
        (3.909595, -2.823352, 0.525037),
        (3.285564, -2.415302, 0.485294),
        (2.277873, -1.619822, 0.398481),
        (1.872576, -1.230704, 0.358516),
        (1.856437, -1.213239, 0.356800),
        (1.875000, -1.250000, 0.375000),
    ),
}


def coefficients(method: Method, iterations: int) -> list[Quintic]:
    """Return the polynomial of each iteration; beyond eight of Polar Express, the last one goes on."""
    if method == "newton_schulz":
        return [NEWTON_SCHULZ] * iterations
    known = POLAR_EXPRESS[min(max(iterations, 3), 8)]
    return [known[min(index, len(known) - 1)] for index in range(iterations)]


def orthogonalise(
    matrices: Float[Tensor, "count rows columns"],
    *,
    method: Method = "newton_schulz",
    iterations: int = 5,
    precision: torch.dtype = torch.float32,
) -> Float[Tensor, "count rows columns"]:
    """Return matrices with singular values brought near 1, signs and directions kept (Polar Express: arXiv 2505.16932).

    bfloat16 is enough: the iteration is stable, and the update needs a direction, not digits. The result has the dtype
    `precision`.
    """
    x = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(precision)
    rows, columns = x.shape[-2:]
    short, long = min(rows, columns), max(rows, columns)
    polynomials = coefficients(method, iterations)
    # Two iterations on the Gram matrix cost fewer products than two on a long matrix. Not more than two: what bfloat16
    # loses in the Gram matrix grows with each, and blows up at small singular values.
    together = 2 if 2 * long > 3 * short else 1
    for first in range(0, iterations, together):
        x = _advance(x, polynomials[first : first + together], wide=rows <= columns)
    return x


def _advance(x: Tensor, polynomials: list[Quintic], *, wide: bool) -> Tensor:
    """Apply one polynomial, or one after the other through their common factor on the short side."""
    gram = x @ x.mT if wide else x.mT @ x  # (count, short, short)
    a, b, c = polynomials[0]
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    if len(polynomials) == 1:
        return torch.baddbmm(x, factor, x, beta=a) if wide else torch.baddbmm(x, x, factor, beta=a)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    gram = factor @ gram @ factor
    a, b, c = polynomials[1]
    second = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor = torch.baddbmm(factor, second, factor, beta=a)
    return factor @ x if wide else x @ factor
