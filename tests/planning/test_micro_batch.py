"""The micro-batch that fits: found on a line, split evenly, and said why; running out becomes a suggestion."""

import pytest
import torch

from ludus.base.errors import ConfigError
from ludus.optim.settings import AdamWSettings
from ludus.planning import memory_errors, micro_batch
from ludus.planning.work import Work


@pytest.fixture
def work(shape):
    return Work(shape(), rows=32, context=24, accumulate=1, steps=10, precision="float32", optimizer=AdamWSettings())


def total(work: Work) -> int:
    return 1000 + 50 * work.rows // (3 if work.recompute else 1) + (300 if work.accumulate > 1 else 0)


def test_the_largest_micro_batch_lies_on_the_line(work):
    assert micro_batch.largest(work, 6000, total) == (100, 1000, 50)
    assert micro_batch.largest(work, 900, total).rows == 0


@pytest.mark.parametrize(
    ("batch", "most", "expected"),
    [(32, 40, (32, 1)), (32, 15, (8, 4)), (30, 12, (10, 3)), (7, 3, (1, 7)), (1, 1, (1, 1))],
)
def test_a_batch_is_split_into_equal_parts(batch, most, expected):
    assert micro_batch.split(batch, most) == expected


def test_rows_are_chosen_so_that_the_batch_stays_the_same(work):
    roomy = micro_batch.choose_rows(work, memory_bytes=10_000, total=total)
    assert roomy[:2] == (32, 1)
    tight = micro_batch.choose_rows(work, memory_bytes=2000, total=total)
    assert tight[:2] == (8, 4)
    assert "at most 10 rows" in tight.reason
    assert micro_batch.choose_rows(work, memory_bytes=2000, total=total, batch_rows=64)[:2] == (8, 8)
    with pytest.raises(ConfigError, match=r"not even one row fits.*data\.context"):
        micro_batch.choose_rows(work, memory_bytes=500, total=total)


def test_the_advice_comes_in_order_of_what_it_costs(work):
    fit = micro_batch.largest(work, 2000, total)
    said = memory_errors.advice(work, fit, 2000, total)
    assert said[0].startswith("pretrain.rows=16 pretrain.accumulate=2: the same gradient")
    assert said[1].startswith("pretrain.recompute=true")
    assert memory_errors.advice(work, fit, 9000, total) == []
    hopeless = " ".join(memory_errors.advice(work, micro_batch.largest(work, 500, total), 500, total))
    assert "adapter" in hopeless
    assert "model.depth" in hopeless
    assert "shard" in hopeless


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to ..."
        ),
        OSError("Cannot allocate memory"),
    ],
)
def test_running_out_of_memory_is_a_suggestion(problem):
    with (
        pytest.raises(memory_errors.OutOfMemory, match=r"pretrain\.rows=4 pretrain\.accumulate=4") as caught,
        memory_errors.advising("pretrain", 8, 2),
    ):
        raise problem
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_real_allocation_that_cannot_be_made_is_caught():
    with (
        pytest.raises(memory_errors.OutOfMemory, match="of the plan"),
        memory_errors.advising("sft", 1, 1, lambda: ["of the plan"]),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_other_errors_pass():
    with pytest.raises(ValueError, match="x"), memory_errors.advising("pretrain", 8, 1):
        raise ValueError("x")
