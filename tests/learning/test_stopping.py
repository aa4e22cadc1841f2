"""A run stops when validation no longer improves, and can end with its best weights."""

import math
from types import SimpleNamespace

import pytest
import torch
from learning.alive import Life

from ludus.learning import checkpoints
from ludus.learning.stopping import Stopping, restore_best


def watched(values: list[float], **options) -> tuple[SimpleNamespace, Stopping]:
    """Show a run's validations, one every ten steps, to its patience, until it stops."""
    run = SimpleNamespace(step=0, stopped=None)
    stopping = Stopping(run, **options)  # type: ignore[arg-type]
    for value in values:
        run.step += 10
        stopping(run, {"loss": 9.0, "validation_loss": value})
        if run.stopped:
            break
        stopping(run, {"loss": 9.0})  # a step without validation says nothing
    return run, stopping


def test_patience_is_counted_in_validations_without_improvement():
    run, _ = watched([3.0, 2.0, 2.1, 1.9, 2.0, 1.9, 1.8], patience=2)
    assert run.step == 60
    assert run.stopped == "validation_loss has not improved on 1.9 (step 40) in 2 validations"


def test_what_improves_by_less_than_the_least_is_no_improvement():
    falling = [3.0 - 0.01 * step for step in range(20)]
    assert watched(falling, patience=3)[0].stopped is None
    assert watched(falling, patience=3, least=0.1)[0].step == 40
    assert watched(falling, patience=10, least=0.05)[0].stopped is None  # it adds up


def test_a_validation_that_is_no_number_is_no_improvement():
    run, stopping = watched([math.nan, math.nan, 3.0, math.nan, math.inf], patience=2)
    assert run.step == 20
    run, stopping = watched([3.0, math.nan], patience=2)
    assert (run.stopped, stopping.best) == (None, 3.0)


def test_without_patience_nothing_stops():
    run, stopping = watched([1.0, *[2.0] * 50], patience=None)
    assert run.stopped is None
    assert (stopping.best, stopping.best_step, stopping.waited) == (1.0, 10, 50)


def test_the_best_is_saved_when_it_is_the_best():
    run = SimpleNamespace(step=0, stopped=None)
    stopping, saved = Stopping(run, patience=None, least=0.5), []  # type: ignore[arg-type]
    save = stopping.when_better(lambda run, metrics: saved.append(run.step))
    for value in [3.0, 2.9, 2.95, math.nan, 2.0, 2.0]:
        run.step += 1
        for metrics in ({"validation_loss": value}, {}):
            stopping(run, metrics)  # type: ignore[arg-type]
            save(run, metrics)  # type: ignore[arg-type]
    assert saved == [1, 2, 5]


def test_a_run_that_was_stopped_stays_stopped_and_one_that_was_not_goes_on_waiting():
    run, stopping = watched([3.0, 3.1], patience=2)
    state = stopping.state_dict()
    stopping(run, {"validation_loss": 3.2})  # type: ignore[arg-type]
    assert run.stopped
    other = SimpleNamespace(step=0, stopped=None)
    again = Stopping(other, patience=2)  # type: ignore[arg-type]
    again.load_state_dict(stopping.state_dict())
    assert other.stopped == run.stopped
    again.load_state_dict(state)
    assert other.stopped is None
    again(other, {"validation_loss": 3.2})  # type: ignore[arg-type]
    assert other.stopped == run.stopped


def test_a_training_stops_and_ends_with_its_best_weights(tmp_path):
    life = Life(tmp_path, patience=2)
    seen: dict[int, float] = {}
    worse = iter([3.0, 2.5, 2.4, 2.6, 2.7, 2.8])
    inner = life.stopping.__call__

    def scripted(run, metrics):
        if "validation_loss" in metrics:
            metrics["validation_loss"] = next(worse)
            seen[run.step] = metrics["validation_loss"]
        inner(run, metrics)

    scripted.when_better = life.stopping.when_better  # type: ignore[attr-defined]
    life.stopping = scripted  # type: ignore[assignment]
    life.live(100)
    assert life.run.step == 20
    assert life.run.stopped == "validation_loss has not improved on 2.4 (step 12) in 2 validations"
    found = checkpoints.best(tmp_path / "checkpoints")
    assert found is not None
    assert (checkpoints.step_of(found[0]), found[1]) == (12, 2.4)
    kept = checkpoints.load(found[0])[1]
    tokens = life.run.source.tokens
    assert restore_best(life.run, tmp_path / "checkpoints") == 12
    assert all(torch.equal(kept["model"][name], value) for name, value in life.run.model.named_parameters())
    assert life.average.updates == 12
    assert (life.run.step, life.run.source.tokens) == (20, tokens)


def test_without_a_measured_checkpoint_there_is_no_best(tmp_path):
    checkpoints.save(tmp_path, 1, {"a": torch.ones(2)})
    assert checkpoints.best(tmp_path) is None
    assert restore_best(SimpleNamespace(), tmp_path) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_never_the_best(tmp_path, value):
    checkpoints.save(tmp_path, 1, {}, metric=("validation_loss", value))
    assert checkpoints.best(tmp_path) is None
    checkpoints.save(tmp_path, 2, {}, metric=("validation_loss", 3.0))
    assert checkpoints.best(tmp_path) == (tmp_path / "step-00000002", 3.0)
