"""The law of scale, fitted to runs of one's own: L(N, D) = E + A / N^alpha + B / D^beta, with intervals.

What lives here: the fit, its bootstrap and predictions with intervals, on plain numbers. What does not: running a
ladder and keeping results. The one idea: small runs foretell a large one only as well as their scatter allows, so
every figure has an interval, and the prediction is written down before the run that tests it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ludus.base.errors import DataError

HUBER = 1e-3  # on the logarithm of the loss
NAMES = ("E", "A", "B", "alpha", "beta")
LEAST_POINTS = 6  # one more than the constants
STARTS = 48
BOOTSTRAPS = 200
ITERATIONS = 200
REFINEMENTS = 80
POLISHED = 2  # of the starts, once all have come near their minimum
SHARE = 0.9  # of the intervals


class Point(NamedTuple):
    """One run: its parameters, the tokens it was trained on, and its loss in nats a token."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """Fitted constants, those of each bootstrap sample, and how far the points lie off, as a share of the loss."""

    constants: dict[str, float]
    samples: tuple[tuple[float, ...], ...]
    scatter: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the loss the law expects, in nats a token."""
        return _loss([self.constants[name] for name in NAMES], parameters, tokens)

    def interval(self, parameters: float, tokens: float) -> tuple[float, float]:
        """Return the interval in which a run's loss should lie: the fit's uncertainty and the runs' own scatter."""
        return self._range(np.array([_loss(sample, parameters, tokens) for sample in self.samples]))

    def _range(self, values: np.ndarray) -> tuple[float, float]:
        # Each sample's value with a run's own scatter about it, spread evenly over its quantiles.
        spread = np.exp(self.scatter * _normal_quantiles(41))
        everything = (values[:, None] * spread[None, :]).ravel()
        low, high = np.quantile(everything, [(1 - SHARE) / 2, (1 + SHARE) / 2])
        return float(low), float(high)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the interval of each constant."""
        columns = np.array(self.samples).T
        quantiles = np.quantile(columns, [(1 - SHARE) / 2, (1 + SHARE) / 2], axis=1)
        return {name: (float(low), float(high)) for name, low, high in zip(NAMES, *quantiles, strict=True)}

    def as_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` reads them back."""
        return {
            "law": "L = E + A / N^alpha + B / D^beta",
            "constants": self.constants,
            "intervals": self.intervals(),
            "share": SHARE,
            "scatter": self.scatter,
            "samples": [list(sample) for sample in self.samples],
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Law":
        """Return the law that `as_json` wrote."""
        samples = tuple(tuple(sample) for sample in content["samples"])
        return Law(dict(content["constants"]), samples, float(content["scatter"]))


def fit(
    points: Sequence[Point],
    *,
    bootstraps: int = BOOTSTRAPS,
    seed: int = 0,
) -> Law:
    """Fit the law to runs, as approach 3 of Chinchilla does (arXiv 2203.15556 §3.3), and bootstrap it.

    The Huber loss of the difference of logarithms is minimised by L-BFGS from many starts. A bootstrap sample draws the
    residuals anew, since a handful of designed sizes drawn with repetition would often leave a constant undetermined.

    Raises:
        DataError: there are too few runs, a loss is not finite, or sizes or token counts do not vary enough to tell.
    """
    check(points)
    logs = np.log(np.array(points, dtype=np.float64))
    starts = _starts(logs, seed)
    best = _minimise(logs, starts)
    residuals = logs[:, 2] - _log_loss(torch.from_numpy(best)[None], torch.from_numpy(logs)).numpy()[0]
    # Constants that were fitted take degrees of freedom: what is left of the residuals is made as large again.
    freed = math.sqrt(len(points) / max(1, len(points) - len(NAMES)))
    residuals = (residuals - residuals.mean()) * min(freed, 3.0)
    draws = np.random.default_rng(seed)
    expected = logs[:, 2] - residuals / min(freed, 3.0)
    again = np.repeat(logs[None], bootstraps, axis=0)
    again[:, :, 2] = expected + draws.choice(residuals, (bootstraps, len(residuals)))
    samples = [_constants(theta) for theta in _refine(np.repeat(best[None], bootstraps, axis=0), again)]
    return Law(dict(zip(NAMES, _constants(best), strict=True)), tuple(samples), float(residuals.std()))


def check(points: Sequence[Point]) -> None:
    """Raise DataError unless a law can be fitted to these runs."""
    if len(points) < LEAST_POINTS:
        raise DataError(f"{len(points)} runs cannot tell five constants; run {LEAST_POINTS} or more, on both axes")
    bad = [point for point in points if not (math.isfinite(point.loss) and point.loss > 0)]
    if bad:
        raise DataError(f"{len(bad)} runs have no finite loss; leave them out or run them with a lower learning rate")
    for name, of, what in (("parameters", 0, "model.depth or model.width"), ("tokens", 1, "pretrain.steps")):
        if len({round(math.log(point[of]), 6) for point in points}) < 2:
            raise DataError(f"all runs have the same {name}; vary {what} too")


def predict(law: Law, parameters: float, tokens: float) -> dict[str, Any]:
    """Return the prediction for a run as plain values, to be written down before it runs."""
    low, high = law.interval(parameters, tokens)
    return {
        "parameters": parameters,
        "tokens": tokens,
        "loss": law.loss(parameters, tokens),
        "low": low,
        "high": high,
        "share": SHARE,
    }


def _loss(constants: Sequence[float], parameters: float, tokens: float) -> float:
    e, a, b, alpha, beta = constants
    return e + a / parameters**alpha + b / tokens**beta


def _constants(theta: np.ndarray) -> tuple[float, ...]:
    e, a, b, alpha, beta = theta
    return (math.exp(e), math.exp(a), math.exp(b), float(alpha), float(beta))


def _starts(logs: np.ndarray, seed: int) -> np.ndarray:
    """Return starts for (log E, log A, log B, alpha, beta), with A and B so that each term begins within the loss."""
    draws = np.random.default_rng(seed + 1)
    least = logs[:, 2].min()
    middle = logs[:, :2].mean(axis=0)
    exponents = draws.uniform(0.1, 1.0, (STARTS, 2))
    share = np.log(draws.uniform(0.1, 1.0, (STARTS, 2)))
    floor = least + np.log(draws.uniform(0.1, 0.95, (STARTS, 1)))
    return np.concatenate([floor, least + share + exponents * middle, exponents], axis=1)


def _log_loss(theta: Tensor, logs: Tensor) -> Tensor:
    """Return log L of each point under each row of constants: (starts, points)."""
    e, a, b, alpha, beta = (theta[:, index, None] for index in range(5))
    terms = [e.expand(-1, len(logs)), a - alpha * logs[:, 0], b - beta * logs[:, 1]]
    return torch.logsumexp(torch.stack(terms), dim=0)


def _objective(theta: Tensor, logs: Tensor) -> Tensor:
    """Return the Huber loss of each row of constants, in units of its width; exponents are kept in bounds."""
    difference = _log_loss(theta, logs) - logs[:, 2]
    huber = torch.nn.functional.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=HUBER)
    fence = 1e-4 * (torch.relu(-theta[:, 3:]) ** 2 + torch.relu(theta[:, 3:] - 3) ** 2).sum(dim=1)
    return (huber.sum(dim=1) + fence) / HUBER**2


def _minimise(logs: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the constants of the lowest minimum found from any start; starts are independent but run as one batch.

    Exponents and logarithms differ in scale, so steps are taken in coordinates centred on the points.
    """
    points = torch.from_numpy(logs)
    centre = points[:, :2].mean(dim=0)
    first = torch.from_numpy(_refine(starts, np.repeat(logs[None], len(starts), axis=0)))
    # A / N^alpha = A' / (N / centre)^alpha: A' hardly depends on alpha, which makes the valley round.
    moved = torch.cat([first[:, :1], first[:, 1:3] - first[:, 3:] * centre, first[:, 3:]], dim=1)
    shifted = torch.cat([points[:, :2] - centre, points[:, 2:]], dim=1)
    values = _objective(moved, shifted)
    chosen = moved[values.argsort()[:POLISHED]]
    found = [_descend(start, shifted) for start in chosen]
    best = min(found, key=lambda pair: pair[0])[1]
    return torch.cat([best[:1], best[1:3] + best[3:] * centre, best[3:]]).numpy()


def _refine(starts: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Fit every sample, (samples, points, 3), from a start of its own, all at once: damped Gauss-Newton steps.

    The Huber loss is a least square whose far points weigh less.
    """
    centre = logs[0, :, :2].mean(axis=0)
    x, y = logs[..., :2] - centre, logs[..., 2]
    theta = np.concatenate([starts[:, :1], starts[:, 1:3] - starts[:, 3:] * centre, starts[:, 3:]], axis=1)
    damping = np.full(len(logs), 1e-3)
    value, slopes, residuals = _linearised(theta, x, y)
    for _ in range(REFINEMENTS):
        weights = np.minimum(1.0, HUBER / np.maximum(np.abs(residuals), 1e-300))[..., None]
        normal = np.einsum("spi,spj->sij", slopes * weights, slopes)
        steepest = np.einsum("spi,sp->si", slopes * weights, residuals)
        scale = np.maximum(np.einsum("sii->si", normal), 1e-12)
        matrix = normal + (damping[:, None] * scale)[:, :, None] * np.eye(len(NAMES))
        tried = theta - np.linalg.solve(matrix, steepest[..., None])[..., 0]
        tried[:, 3:] = np.clip(tried[:, 3:], 0.0, 3.0)
        new_value, new_slopes, new_residuals = _linearised(tried, x, y)
        better = new_value < value
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e6)
        theta = np.where(better[:, None], tried, theta)
        value = np.where(better, new_value, value)
        slopes = np.where(better[:, None, None], new_slopes, slopes)
        residuals = np.where(better[:, None], new_residuals, residuals)
    return np.concatenate([theta[:, :1], theta[:, 1:3] + theta[:, 3:] * centre, theta[:, 3:]], axis=1)


def _linearised(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the Huber loss of each sample, the slopes of log L by each constant, and the residuals."""
    e, a, b = (theta[:, index, None] for index in range(3))
    terms = np.stack(
        [np.broadcast_to(e, y.shape), a - theta[:, 3, None] * x[..., 0], b - theta[:, 4, None] * x[..., 1]]
    )
    top = terms.max(axis=0)
    total = top + np.log(np.exp(terms - top).sum(axis=0))
    shares = np.exp(terms - total)
    slopes = np.stack([*shares, -shares[1] * x[..., 0], -shares[2] * x[..., 1]], axis=-1)
    residuals = total - y
    size = np.abs(residuals)
    huber = np.where(size <= HUBER, 0.5 * residuals**2, HUBER * (size - HUBER / 2)).sum(axis=-1)
    return huber, slopes, residuals


def _descend(start: Tensor, points: Tensor) -> tuple[float, Tensor]:
    """Run L-BFGS from one start."""
    theta = start.clone().requires_grad_(True)
    search = torch.optim.LBFGS(
        [theta],
        max_iter=ITERATIONS,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
    )

    def closure() -> Tensor:
        search.zero_grad()
        value = _objective(theta[None], points).sum()
        value.backward()
        return value

    search.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        value = float(_objective(theta[None], points).sum())
    return (value if math.isfinite(value) else math.inf), theta.detach()


def _normal_quantiles(count: int) -> np.ndarray:
    places = torch.linspace(0.5 / count, 1 - 0.5 / count, count, dtype=torch.float64)
    return (math.sqrt(2) * torch.erfinv(2 * places - 1)).numpy()
