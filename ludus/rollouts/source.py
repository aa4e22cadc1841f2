"""The source of GRPO: sample groups of answers, score them, and yield them as batches.

It is pulled by the loop after its last update, so answers are always drawn from the current policy. Everything random
comes from one generator, which is part of its state: a resumed run samples the same answers.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ludus.base.seeds import derive_seed
from ludus.data.batch import Batch, pad
from ludus.data.epochs import Epochs
from ludus.generation.engine import Completion, Sampling, generate
from ludus.learning.objectives.logps import frozen_logps
from ludus.model.transformer import Transformer
from ludus.rollouts.advantages import group_advantages
from ludus.rollouts.settings import RolloutSettings

Score = Callable[[int, Completion], float]  # (number of the prompt, what was sampled) -> reward


class Rollouts(Epochs):
    """Yield each rollout as `splits` batches, so that a step of `accumulate=splits` is one rollout.

    Groups whose rewards are all equal have no gradient and are not run again; they still count in the weight.
    `metrics` holds what the last rollout looked like.
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
    ) -> None:
        super().__init__(len(prompts), derive_seed(seed, "prompts"))
        self.policy, self.prompts, self.score, self.settings = policy, prompts, score, settings
        self.sampling = Sampling(settings.max_new_tokens, frozenset([stop]))
        self.splits = splits
        self.generator = torch.Generator().manual_seed(derive_seed(seed, "rollouts"))
        self.pending: list[Batch] = []
        self.metrics: dict[str, float] = {}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self.pending:
            batches = self._roll_out()
            self.pending = [batch for _ in range(self.settings.epochs) for batch in batches]
        return self.pending.pop(0)

    def _roll_out(self) -> list[Batch]:
        chosen, group = self.take(self.settings.prompts), self.settings.group
        completions = generate(
            self.policy, [self.prompts[index] for index in chosen], self.sampling, generator=self.generator, group=group
        )
        self.tokens += sum(len(completion.tokens) for completion in completions)
        rewards = torch.tensor([self.score(chosen[n // group], each) for n, each in enumerate(completions)])
        advantages = group_advantages(
            rewards.view(-1, group), baseline=self.settings.baseline, scale=self.settings.scale
        ).flatten()
        self.metrics = _describe(rewards.view(-1, group), completions)
        useful = [row for row in range(len(completions)) if advantages[row] != 0]
        useful.sort(key=lambda row: len(self.prompts[chosen[row // group]]) + len(completions[row].tokens))
        weight = self._weight(completions) / self.splits
        return [
            self._collate(
                [(self.prompts[chosen[row // group]], completions[row], advantages[row].item()) for row in rows], weight
            )
            for rows in np.array_split(np.array(useful, dtype=int), self.splits)
        ]

    def _weight(self, completions: list[Completion]) -> float:
        tokens = sum(len(completion.tokens) for completion in completions)
        return float(tokens if self.settings.aggregation == "token" else len(completions))

    def _token_weight(self, completion: Completion) -> float:
        lengths = {"token": 1, "sequence": len(completion.tokens), "constant": self.settings.max_new_tokens}
        return 1.0 / lengths[self.settings.aggregation]

    def _collate(self, rows: list[tuple[Sequence[int], Completion, float]], weight: float) -> Batch:
        tokens, weights, logps, advantages = [], [], [], []
        for prompt, completion, advantage in rows:
            before, after = np.zeros(len(prompt) - 1), np.ones(len(completion.tokens))
            tokens.append(np.array([*prompt, *completion.tokens]))
            weights.append(np.concatenate([before, after * self._token_weight(completion)]))
            logps.append(np.concatenate([before, completion.logps]))
            advantages.append(np.concatenate([before, after * advantage]))
        if not rows:
            tokens, weights, logps, advantages = [np.zeros(2, dtype=int)], [np.zeros(1)], [np.zeros(1)], [np.zeros(1)]
        return Batch(
            tokens=torch.from_numpy(pad(tokens, 0)),
            weights=torch.from_numpy(pad(weights, 0)).float(),
            weight=weight,
            old_logps=torch.from_numpy(pad(logps, 0)).float(),
            advantages=torch.from_numpy(pad(advantages, 0)).float(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return where the source stands, its random state and what it has not yet yielded."""
        pending = [batch.state_dict() for batch in self.pending]
        return super().state_dict() | {"generator": self.generator.get_state(), "pending": pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` says."""
        super().load_state_dict(state)
        self.generator.set_state(state["generator"])
        self.pending = [Batch(**fields) for fields in state["pending"]]


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
