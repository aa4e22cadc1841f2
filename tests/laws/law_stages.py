"""What every law is shown on: each stage's objective with a handful of its own examples, unequal in length.

`batches(model, splits)` yields the same 32 examples (pairs, answers) as that many batches. Also read by `two_ranks.py`,
which runs in processes of its own.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ludus.data.batch import Batch, collate, join
from ludus.data.packing import best_fit
from ludus.data.pairs import Pair, stack
from ludus.learning.loop import Objective, Run, train
from ludus.learning.objectives.next_token import next_token
from ludus.learning.objectives.policy import clipped_policy
from ludus.learning.objectives.preference import direct_preference
from ludus.learning.reference import reference_logps
from ludus.model.transformer import Transformer
from ludus.optim.schedules import constant
from ludus.parallel.mesh import Mesh
from ludus.rollouts.settings import RolloutSettings
from ludus.rollouts.source import Rollouts, WithReference

EXAMPLES, VOCABULARY, LONGEST = 32, 61, 24
Example = tuple[np.ndarray, np.ndarray]


def documents(seed: int = 0) -> list[Example]:
    """Pieces of text, every token learned."""
    random = np.random.default_rng(seed)
    sizes = random.integers(2, LONGEST + 1, EXAMPLES)
    return [(random.integers(0, VOCABULARY, size), np.ones(size, dtype=np.float32)) for size in sizes]


def conversations(seed: int = 1) -> list[Example]:
    """Like rendered conversations: a prompt that is not learned, then an answer that is; some with a second turn."""
    found = []
    for tokens, weights in documents(seed):
        learned = weights.copy()
        learned[: max(1, len(tokens) // 2)] = 0
        learned[-3:-2] = 0
        found.append((tokens, learned if learned[1:].any() else weights))
    return found


def pairs(seed: int = 2) -> list[Pair]:
    return [Pair(*both) for both in zip(conversations(seed), conversations(seed + 50), strict=True)]


def split(items: Sequence, splits: int) -> list[list]:
    size = len(items) // splits
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def one_a_row(examples: list[Example], splits: int) -> list[Batch]:
    return [collate([[one] for one in part], pad_token=0) for part in split(examples, splits)]


def packed(examples: list[Example], splits: int) -> list[Batch]:
    found = []
    for part in split(examples, splits):
        rows = best_fit(np.array([len(tokens) for tokens, _ in part]), 2 * LONGEST)
        found.append(collate([[part[index] for index in row] for row in rows], pad_token=0, length=2 * LONGEST))
    return found


def preferences(model: Transformer, splits: int) -> list[Batch]:
    other = perturbed(model)
    found = []
    for part in split(pairs(), splits):
        reference = torch.from_numpy(reference_logps(other, part, pad_token=0))
        found.append(dataclasses.replace(stack(part, 0), reference_logps=reference.T.flatten()))
    return found


def answers(aggregation: str) -> Callable[[Transformer, int], list[Batch]]:
    """Sample, with a policy that has since moved on; the rollout is the same however it is split."""

    def batches(model: Transformer, splits: int) -> list[Batch]:
        prompts = [tokens[:5].tolist() for tokens, _ in documents(3)]
        settings = RolloutSettings(prompts=EXAMPLES, group=3, max_new_tokens=9, aggregation=aggregation)  # type: ignore[arg-type]
        old, reference = perturbed(model, 0.02), perturbed(model, 0.1, seed=8)
        source = Rollouts(
            old, prompts, lambda _, answer: sum(answer.tokens) % 7 / 7, settings, stop=5, seed=0, splits=splits
        )
        with_reference = WithReference(source, reference)
        return [next(with_reference) for _ in range(splits)]

    return batches


def perturbed(model: Transformer, by: float = 0.3, seed: int = 9) -> Transformer:
    """Return another model of the same shape, near by."""
    other = Transformer(model.shape)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weights = {name.replace(".base", ""): value for name, value in model.named_parameters() if "lora_" not in name}
        for name, parameter in other.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(weights[name] + by * noise * parameter.shape[-1] ** -0.5)
    return other.eval()


@dataclasses.dataclass(frozen=True)
class Stage:
    objective: Objective
    batches: Callable[[Transformer, int], list[Batch]]


STAGES = {
    "pretrain": Stage(next_token, lambda model, splits: one_a_row(documents(), splits)),
    "pretrain packed": Stage(next_token, lambda model, splits: packed(documents(), splits)),
    "sft": Stage(next_token, lambda model, splits: one_a_row(conversations(), splits)),
    "sft packed": Stage(next_token, lambda model, splits: packed(conversations(), splits)),
    "sft with replay": Stage(
        next_token,
        lambda model, splits: [
            join(chat, text.scaled(0.1))
            for chat, text in zip(packed(conversations(), splits), packed(documents(4), splits), strict=True)
        ],
    ),
    "dpo": Stage(direct_preference(0.3, likelihood=0.5), preferences),
    "dpo control": Stage(direct_preference(0.0, likelihood=1.0), preferences),
    "grpo": Stage(clipped_policy(low=0.2, high=0.3, kl=0.1), answers("constant")),
    "grpo by token": Stage(clipped_policy(low=0.05, high=0.05), answers("token")),
    "grpo by answer": Stage(clipped_policy(low=0.2, high=0.2, kl=0.1), answers("sequence")),
}


class Capture:
    """Stands for the optimizer and keeps the gradient of the one step."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.gradients: dict[str, Tensor] = {}

    def set_rate(self, factor: float) -> None:
        pass

    def step(self, skip: Tensor | None = None) -> None:
        assert not skip
        named = self.model.named_parameters()
        self.gradients = {name: value.grad.clone() for name, value in named if value.grad is not None}

    def zero_grad(self) -> None:
        self.model.zero_grad()


def step(
    model: Transformer, objective: Objective, batches: Iterable[Batch], mesh: Mesh | None = None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Take one step of the one loop over all batches; return its gradient and its metrics."""
    batches, capture, seen = list(batches), Capture(model), {}
    run = Run(Path(), model, capture, constant(), iter(batches))  # type: ignore[arg-type]
    hooks = [lambda _, metrics: seen.update(metrics)]
    train(run, objective, steps=1, accumulate=len(batches), clip=float("inf"), mesh=mesh or Mesh(), hooks=hooks)
    return capture.gradients, seen


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the relative difference of two gradients: of the whole, or a tenth of the largest of a single weight.

    A gradient that is zero but for rounding, as that of a key's bias, which softmax does not feel, counts as rounding.
    """
    assert one.keys() == other.keys()
    apart = [(one[name].double().flatten(), other[name].double().flatten()) for name in sorted(one)]
    whole = tuple(torch.cat(side) for side in zip(*apart, strict=True))
    least = 1e-3 * whole[1].norm()
    differences = [float((a - b).norm() / b.norm().clamp(min=least)) for a, b in (whole, *apart)]
    return max(differences[0], max(differences[1:]) / 10)
