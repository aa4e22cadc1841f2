"""Which questions to ask next: more of the kinds from which there is more to learn.

A group of answers teaches through the differences of their rewards, and the variance of a right-or-wrong reward of mean
p is p (1 - p): nothing is learned from what is always right or always wrong. What is nearly mastered or hopeless is
still asked now and then, so that a change is noticed. One kind alone is dealt out as plain shuffled epochs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ludus.base.seeds import derive_seed
from ludus.data.epochs import Epochs

FLOOR = 0.01  # share of attention for a kind without variance, before all are scaled to sum to 1
MEMORY = 0.8  # how much of the running mean reward each rollout leaves


class Curriculum:
    """Deal out prompt numbers by kind; `kinds[n]` is the kind of prompt n."""

    def __init__(self, kinds: Sequence[str], seed: int) -> None:
        self.kinds = kinds
        self.members: dict[str, list[int]] = {}
        for number, kind in enumerate(kinds):
            self.members.setdefault(kind, []).append(number)
        self.orders = {kind: Epochs(len(found), derive_seed(seed, kind)) for kind, found in self.members.items()}
        self.means = dict.fromkeys(self.members, 0.5)

    def take(self, count: int) -> list[int]:
        """Return the numbers of the next prompts."""
        return [
            self.members[kind][place]
            for kind, share in self._shares(count).items()
            for place in self.orders[kind].take(share)
        ]

    def observe(self, rewards: Mapping[int, float]) -> None:
        """Learn from the mean reward of each prompt that was asked."""
        by_kind: dict[str, list[float]] = {}
        for number, reward in rewards.items():
            by_kind.setdefault(self.kinds[number], []).append(min(1.0, max(0.0, reward)))
        for kind, found in by_kind.items():
            self.means[kind] = MEMORY * self.means[kind] + (1 - MEMORY) * sum(found) / len(found)

    def _shares(self, count: int) -> dict[str, int]:
        """Split `count` in proportion to the variances, by largest remainders."""
        worth = {kind: mean * (1 - mean) + FLOOR for kind, mean in self.means.items()}
        exact = {kind: count * value / sum(worth.values()) for kind, value in worth.items()}
        shares = {kind: int(value) for kind, value in exact.items()}
        by_remainder = sorted(exact, key=lambda kind: shares[kind] - exact[kind])
        for kind in by_remainder[: count - sum(shares.values())]:
            shares[kind] += 1
        return shares

    def state_dict(self) -> dict[str, Any]:
        """Return each kind's place in its order and its running mean reward."""
        return {kind: order.state_dict() | {"mean": self.means[kind]} for kind, order in self.orders.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` says."""
        for kind, found in state.items():
            self.orders[kind].load_state_dict(found)
            self.means[kind] = found["mean"]
