"""From rewards to advantages, by independent choices of baseline and scale."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor


def group_advantages(
    rewards: Float[Tensor, "prompts group"],
    *,
    baseline: Literal["group", "leave-one-out"] = "group",
    scale: Literal["group", "batch", "none"] = "none",
    epsilon: float = 1e-4,
) -> Float[Tensor, "prompts group"]:
    """Compare each reward with those of the other answers to its question.

    `baseline="group", scale="group"` is GRPO (arXiv 2402.03300 §4.1.2), `scale="none"` is Dr. GRPO (arXiv 2503.20783),
    `baseline="leave-one-out"` is RLOO (arXiv 2402.14740 eq. 8). A group of equal rewards has no advantage.
    """
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if baseline == "leave-one-out":
        group = rewards.shape[1]
        advantages = advantages * group / (group - 1)
    if scale == "group":
        return advantages / (rewards.std(dim=1, keepdim=True) + epsilon)
    return advantages / (rewards.std() + epsilon) if scale == "batch" else advantages
