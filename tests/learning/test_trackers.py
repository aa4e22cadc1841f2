"""Metrics for those who watch elsewhere: TensorBoard for real, Weights & Biases by a stand-in."""

import sys
from types import SimpleNamespace

import pytest

from ludus.base.errors import MissingExtra
from ludus.learning import trackers


def test_a_tracker_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"needs wandb; install with: pip install .ludus\[trackers\]"):
        trackers.require(["wandb"])


def test_weights_and_biases_get_every_metric_with_its_step_and_a_resumed_run_goes_on(monkeypatch, tmp_path):
    logged, begun = [], {}

    def init(**facts):
        begun.update(facts)
        return SimpleNamespace(log=lambda metrics, step: logged.append((step, metrics)))

    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    (hook,) = trackers.hooks(["wandb"], folder=tmp_path, project="ludus", name="a/pretrain", settings={"steps": 3})
    hook(SimpleNamespace(step=2), {"loss": 1.5})
    assert logged == [(2, {"loss": 1.5})]
    assert (begun["id"], begun["resume"], begun["config"]) == ("a-pretrain", "allow", {"steps": 3})


def test_tensorboard_reads_back_what_was_measured(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (hook,) = trackers.hooks(["tensorboard"], folder=tmp_path, project="ludus", name="a", settings={})
    for step in (1, 2):
        hook(SimpleNamespace(step=step), {"loss": 3.0 / step})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 3.0), (2, 1.5)]
