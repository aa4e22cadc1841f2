import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ludus.rollouts.advantages import group_advantages

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0]])
groups = arrays(np.float32, (3, 4), elements=st.floats(-8, 8, width=16)).map(torch.from_numpy)


def test_grpo_divides_by_the_deviation_of_the_group():
    found = group_advantages(REWARDS, scale="group", epsilon=0.5)
    for row, rewards in zip(found, REWARDS.tolist(), strict=True):
        mean = sum(rewards) / 4
        deviation = (sum((reward - mean) ** 2 for reward in rewards) / 3) ** 0.5
        assert row.tolist() == pytest.approx([(reward - mean) / (deviation + 0.5) for reward in rewards])


def test_dr_grpo_only_takes_the_mean_away():
    assert group_advantages(REWARDS).tolist() == [[0.5, -0.5, -0.5, 0.5], [-0.75, -0.75, -0.75, 2.25], [0, 0, 0, 0]]


def test_the_leave_one_out_baseline_is_the_mean_of_the_others():
    found = group_advantages(REWARDS, baseline="leave-one-out")
    for row, rewards in zip(found, REWARDS.tolist(), strict=True):
        others = [(sum(rewards) - reward) / 3 for reward in rewards]
        assert row.tolist() == pytest.approx([reward - other for reward, other in zip(rewards, others, strict=True)])


def test_the_deviation_of_the_batch_is_shared_by_all_groups():
    found = group_advantages(REWARDS, scale="batch", epsilon=0.0)
    torch.testing.assert_close(found, group_advantages(REWARDS) / np.std(REWARDS.numpy(), ddof=1))


@given(
    groups, st.sampled_from(["group", "leave-one-out"]), st.sampled_from(["group", "batch", "none"]), st.floats(-4, 4)
)
def test_advantages_of_a_group_sum_to_nothing_and_no_constant_changes_them(rewards, baseline, scale, constant):
    found = group_advantages(rewards, baseline=baseline, scale=scale)
    assert found.shape == rewards.shape
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(dim=1), torch.zeros(3), rtol=0, atol=0.05)
    torch.testing.assert_close(
        group_advantages(rewards + constant, baseline=baseline, scale=scale), found, atol=0.05, rtol=1e-2
    )


@given(st.floats(-8, 8, width=16), st.integers(2, 16))
def test_a_group_of_one_mind_has_no_advantage(reward, size):
    rewards = torch.full((2, size), reward)
    for baseline in ("group", "leave-one-out"):
        for scale in ("group", "batch", "none"):
            found = group_advantages(rewards, baseline=baseline, scale=scale)  # type: ignore[arg-type]
            torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-4)
