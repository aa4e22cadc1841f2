"""The source of GRPO: sample groups of answers, score them, and yield them as batches.

It is pulled by the loop after its last update, so answers are always drawn from the current policy. Everything random
comes from one generator, which is part of its state: a resumed run samples the same answers.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ludus.base.seeds import derive_seed
from ludus.data.batch import Batch, collate, pad
from ludus.generation.engine import Completion, Sampling, generate
from ludus.learning.objectives.logps import frozen_logps
from ludus.model.transformer import Transformer
from ludus.rollouts.advantages import group_advantages
from ludus.rollouts.curriculum import Curriculum
from ludus.rollouts.settings import RolloutSettings

Score = Callable[[int, Completion], float]  # (number of the prompt, what was sampled) -> reward
ROWS = 1024  # answers sampled at a time
Row = tuple[Sequence[int], list[Completion], list[float]]  # a prompt, its group of answers and their advantages


class Rollouts:
    """Yield each rollout as `splits` batches, so that a step of `accumulate=splits` is one rollout.

    A row is a question and its group of answers, the question computed once for all of them. Groups whose rewards are
    all equal have no advantage and are not run again, unless the objective has more to ask of `every_group`; they still
    count in the weight. `metrics` describes the last rollout; `kinds` names each prompt's kind, for the curriculum.
    """

    def __init__(
        self,
        policy: Transformer,
        prompts: Sequence[Sequence[int]],
        score: Score,
        settings: RolloutSettings,
        *,
        stop: int,
        seed: int,
        splits: int = 1,
        kinds: Sequence[str] | None = None,
        every_group: bool = False,
    ) -> None:
        self.policy, self.prompts, self.score, self.settings = policy, prompts, score, settings
        self.sampling = Sampling(settings.max_new_tokens, frozenset([stop]))
        self.splits, self.every_group = splits, every_group
        self.curriculum = Curriculum(kinds or [""] * len(prompts), derive_seed(seed, "prompts"))
        self.generator = torch.Generator().manual_seed(derive_seed(seed, "rollouts"))
        self.pending: list[Batch] = []
        self.metrics: dict[str, float] = {}
        self.tokens = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self.pending:
            batches = self._roll_out()
            self.pending = [batch for _ in range(self.settings.epochs) for batch in batches]
        return self.pending.pop(0)

    def _roll_out(self) -> list[Batch]:
        chosen, group = self.curriculum.take(self.settings.prompts), self.settings.group
        prompts = [self.prompts[index] for index in chosen]
        completions = generate(self.policy, prompts, self.sampling, generator=self.generator, group=group, rows=ROWS)
        self.tokens += sum(len(completion.tokens) for completion in completions)
        scores = [self.score(chosen[n // group], completion) for n, completion in enumerate(completions)]
        rewards = torch.tensor(scores, dtype=torch.float32).view(-1, group)
        self.curriculum.observe(dict(zip(chosen, rewards.mean(dim=1).tolist(), strict=True)))
        self.metrics = _describe(rewards, completions)
        advantages = group_advantages(rewards, baseline=self.settings.baseline, scale=self.settings.scale)
        rows = [
            (prompts[row], completions[row * group : (row + 1) * group], advantages[row].tolist())
            for row in range(len(prompts))
            if self.every_group or advantages[row].any()
        ]
        rows.sort(key=lambda row: len(row[0]) + sum(len(completion.tokens) for completion in row[1]))
        bounds = np.linspace(0, len(rows), self.splits + 1).astype(int)
        parts = [rows[a:b] for a, b in itertools.pairwise(bounds)]
        # In proportion to its tokens, so that means over tokens do not depend on the splits either.
        sizes = [sum(len(completion.tokens) for row in part for completion in row[1]) for part in parts]
        weight, whole = self._weight(completions), sum(sizes)
        shares = [size / whole for size in sizes] if whole else [1 / self.splits] * self.splits
        return [self._collate(part, weight * share) for part, share in zip(parts, shares, strict=True)]

    def _weight(self, completions: list[Completion]) -> float:
        tokens = sum(len(completion.tokens) for completion in completions)
        return float(tokens if self.settings.aggregation == "token" else len(completions))

    def _token_weight(self, completion: Completion) -> float:
        lengths = {"token": 1, "sequence": len(completion.tokens), "constant": self.settings.max_new_tokens}
        return 1.0 / lengths[self.settings.aggregation]

    def _collate(self, rows: list[Row], weight: float) -> Batch:
        """Lay out rows: the question but for its last token, then that token with each of the answers."""
        packs, logps, advantages = [], [], []
        for prompt, completions, row_advantages in rows:
            head, last = np.array(prompt[:-1]), prompt[-1]
            answers = [
                (np.array([last, *each.tokens]), np.full(len(each.tokens) + 1, self._token_weight(each), np.float32))
                for each in completions
            ]
            packs.append([(head, np.zeros(len(head), np.float32)), *answers])
            before = np.zeros(len(head))
            logps.append(np.concatenate([before, *([0.0, *each.logps] for each in completions)]))
            repeated = np.repeat(row_advantages, [len(each.tokens) + 1 for each in completions])
            advantages.append(np.concatenate([before, repeated]))
        if not rows:  # every group was of one mind: a batch without a gradient
            packs, logps, advantages = [[(np.zeros(2), np.zeros(2))]], [np.zeros(2)], [np.zeros(2)]
        batch = collate(packs, pad_token=0, weight=weight)
        return dataclasses.replace(
            batch,
            shared=bool(rows),
            old_logps=torch.from_numpy(pad(logps, 0)).float()[:, 1:],
            advantages=torch.from_numpy(pad(advantages, 0)).float()[:, 1:],
        )

    def state_dict(self) -> dict[str, Any]:
        """Return where the source stands, its random state and what it has not yet yielded."""
        return {
            "curriculum": self.curriculum.state_dict(),
            "generator": self.generator.get_state(),
            "pending": [batch.state_dict() for batch in self.pending],
            "metrics": self.metrics,
            "tokens": self.tokens,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` says."""
        self.curriculum.load_state_dict(state["curriculum"])
        self.generator.set_state(state["generator"])
        self.pending = [Batch(**fields) for fields in state["pending"]]
        self.metrics = state["metrics"]
        self.tokens = state["tokens"]


def _describe(rewards: torch.Tensor, completions: list[Completion]) -> dict[str, float]:
    return {
        "reward": rewards.mean().item(),
        "reward_deviation": rewards.std().item(),
        "zero_variance": (rewards == rewards[:, :1]).all(dim=1).float().mean().item(),
        "length": sum(len(completion.tokens) for completion in completions) / len(completions),
        "truncated": sum(completion.finish == "length" for completion in completions) / len(completions),
    }


class WithReference:
    """Add a frozen model's log-probabilities to each batch of a source; it has no state of its own."""

    def __init__(self, source: Rollouts, reference: Transformer) -> None:
        self.source, self.reference = source, reference

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self.source)
        return dataclasses.replace(batch, reference_logps=frozen_logps(self.reference, batch))

    @property
    def tokens(self) -> int:
        """Count the tokens sampled so far."""
        return self.source.tokens

    @property
    def metrics(self) -> dict[str, float]:
        """Describe the last rollout."""
        return self.source.metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the source's state."""
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` says."""
        self.source.load_state_dict(state)
