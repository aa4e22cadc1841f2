from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ludus.base.seeds import derive_seed
from ludus.data.epochs import Epochs
from ludus.rollouts.curriculum import FLOOR, MEMORY, Curriculum

KINDS = ["easy"] * 10 + ["hard"] * 10 + ["hopeless"] * 10


def test_one_kind_alone_is_dealt_out_in_shuffled_epochs():
    curriculum, order = Curriculum([""] * 10, seed=5), Epochs(10, derive_seed(5, ""))
    for _ in range(4):
        assert curriculum.take(7) == order.take(7)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.integers(1, 30), st.integers(0, 9))
def test_as_many_prompts_as_asked_for_are_taken(kinds, count, seed):
    taken = Curriculum(kinds, seed).take(count)
    assert len(taken) == count
    assert set(taken) <= set(range(len(kinds)))


def test_attention_goes_where_rewards_differ_most():
    curriculum = Curriculum(KINDS, seed=0)
    for _ in range(40):
        curriculum.observe({0: 1.0, 10: 0.5, 20: 0.0})
    counts = Counter(KINDS[number] for number in curriculum.take(100))
    worth = {"easy": FLOOR, "hard": 0.25 + FLOOR, "hopeless": FLOOR}
    for kind, value in worth.items():
        assert counts[kind] == pytest.approx(100 * value / sum(worth.values()), abs=1)
    assert min(counts.values()) > 0


def test_the_running_mean_forgets_and_holds_rewards_between_0_and_1():
    curriculum = Curriculum(KINDS, seed=0)
    curriculum.observe({0: 1.0, 1: 0.0, 10: 7.0})
    assert curriculum.means["easy"] == pytest.approx(0.5)
    assert curriculum.means["hard"] == pytest.approx(MEMORY * 0.5 + (1 - MEMORY))
    assert curriculum.means["hopeless"] == 0.5


def test_a_resumed_curriculum_asks_what_would_have_been_asked():
    running, resumed = Curriculum(KINDS, seed=2), Curriculum(KINDS, seed=2)
    for taken in (running.take(7), running.take(11)):
        running.observe({number: number % 3 / 2 for number in taken})
    resumed.load_state_dict(running.state_dict())
    for _ in range(5):
        first, second = running.take(8), resumed.take(8)
        assert first == second
        for curriculum in (running, resumed):
            curriculum.observe({number: number % 4 / 3 for number in first})
