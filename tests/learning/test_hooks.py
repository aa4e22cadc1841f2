import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ludus.base.errors import CheckpointError, DiskFull
from ludus.data.batch import collate
from ludus.learning import checkpoints, hooks
from ludus.learning.interruption import Asked, Interrupted
from ludus.learning.loop import Run
from ludus.learning.objectives.next_token import next_token
from ludus.learning.saver import Saver
from ludus.optim import groups
from ludus.optim.schedules import constant
from ludus.optim.settings import AdamWSettings
from ludus.runs.metrics import MetricsLog, read


class Counted:
    """A source that is all state."""

    def __init__(self) -> None:
        self.tokens, self.metrics = 0, {"reward": 0.5}

    def state_dict(self) -> dict:
        return {"tokens": self.tokens}

    def load_state_dict(self, state: dict) -> None:
        self.tokens = state["tokens"]


@pytest.fixture
def run(tiny, tmp_path: Path) -> Run:
    model = tiny()
    optimizer = groups.build(model.named_parameters(), AdamWSettings())
    return Run(tmp_path, model, optimizer, constant(), Counted())  # type: ignore[arg-type]


def at(run: Run, step: int) -> Run:
    run.step, run.source.tokens = step, 10 * step
    return run


def test_every_so_many_steps_and_after_the_last():
    called: list[int] = []
    hook = hooks.every(4, lambda run, metrics: called.append(run.step), last=10)
    for step in range(1, 11):
        hook(SimpleNamespace(step=step), {})  # type: ignore[arg-type]
    assert called == [4, 8, 10]


def test_validation_is_the_mean_over_all_predictions_without_dropout(tiny):
    model = tiny(dropout=0.5).train()
    random = np.random.default_rng(0)
    rows = [[(random.integers(0, 61, size), np.ones(size, np.float32))] for size in (9, 3, 17)]
    batches = [collate(rows[:2], pad_token=0), collate(rows[2:], pad_token=0)]
    hook = hooks.validate(next_token, lambda: batches, bytes_per_unit=2.5)
    metrics: dict[str, float] = {}
    hook(SimpleNamespace(model=model), metrics)  # type: ignore[arg-type]
    total = 0.0
    with torch.no_grad():
        for ((tokens, _),) in rows:
            logps = model.eval()(torch.from_numpy(tokens)[None]).log_softmax(dim=-1)[0, :-1]
            total -= float(logps.gather(1, torch.from_numpy(tokens[1:, None])).sum())
    assert metrics["validation_loss"] == pytest.approx(total / (8 + 2 + 16), rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(metrics["validation_loss"] / np.log(2) / 2.5)


def test_validation_leaves_the_mode_and_the_generator_of_the_training_alone(tiny):
    batches = [collate([[(np.arange(5), np.ones(5, np.float32))]], pad_token=0)]
    for training in (True, False):
        model, before = tiny(dropout=0.5).train(training), torch.get_rng_state()
        hooks.mean_loss(model, next_token, batches)
        assert model.training is training
        assert torch.equal(torch.get_rng_state(), before)


def test_a_line_a_step_with_what_the_source_says(run, tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    hook = hooks.log(log)
    hook(at(run, 1), {"loss": 2.5})
    (record,) = read(log.path)
    assert {**record, "seconds": 0} == {
        "step": 1, "learning_rate_factor": 1.0, "tokens": 10, "loss": 2.5, "reward": 0.5, "seconds": 0,
    }  # fmt: skip
    assert 0 <= record["seconds"] < 60


def test_time_goes_on_where_an_earlier_process_left_it(run, tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "seconds": 1000.0})
    hooks.log(log)(at(run, 2), {})
    assert 1000 <= read(log.path)[-1]["seconds"] < 1060


def test_a_step_is_saved_once(run, tmp_path, monkeypatch):
    saved: list[int] = []
    monkeypatch.setattr(checkpoints, "save", lambda folder, step, state, keep: saved.append(step))
    hook = hooks.checkpoint(tmp_path, MetricsLog(tmp_path / "m"), keep=2)
    for step in (3, 3, 4):
        hook(at(run, step), {})
    assert saved == [3, 4]


def test_the_log_is_on_the_disk_before_the_checkpoint_that_claims_it(run, tmp_path, monkeypatch):
    order: list[str] = []
    log = MetricsLog(tmp_path / "m")
    monkeypatch.setattr(log, "sync", lambda: order.append("log"))
    monkeypatch.setattr(checkpoints, "save", lambda *arguments, **options: order.append("checkpoint"))
    hooks.checkpoint(tmp_path, log, keep=2)(at(run, 3), {})
    assert order == ["log", "checkpoint"]


def test_a_full_disk_is_said_and_tried_again(run, tmp_path, monkeypatch, capsys):
    full = [True]

    def save(folder: Path, step: int, state: dict, keep: int) -> None:
        if full.pop() if full else False:
            raise DiskFull("the disk is full: no room")

    monkeypatch.setattr(checkpoints, "save", save)
    hook = hooks.checkpoint(tmp_path, MetricsLog(tmp_path / "m"), keep=2)
    hook(at(run, 3), {})
    assert capsys.readouterr().out == "warning: checkpoint of step 3 not saved: the disk is full: no room\n"
    hook(at(run, 3), {})
    assert capsys.readouterr().out == ""


def test_a_step_is_saved_once_beside_the_training_with_the_log_first(run, tmp_path, monkeypatch):
    order: list[object] = []
    log = MetricsLog(tmp_path / "m")
    monkeypatch.setattr(log, "sync", lambda: order.append("log"))
    monkeypatch.setattr(checkpoints, "write", lambda folder, step, *rest, **options: order.append(step))
    with Saver(tmp_path) as saver:
        hook = hooks.Saving(saver, log, written=lambda tokens: order.append(f"{tokens} tokens"))
        for step in (3, 3, 4):
            hook(at(run, step), {})
            run.source.tokens += 5
    assert order == ["log", 3, "30 tokens", "log", 4, "40 tokens"]


def test_a_full_disk_beside_the_training_is_said_and_costs_one_checkpoint(run, tmp_path, monkeypatch, capsys):
    full, write = [True], checkpoints.write

    def refuse(folder: Path, step: int, *rest: object, **options: object) -> Path:
        if full.pop() if full else False:
            raise DiskFull("the disk is full: no room")
        return write(folder, step, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoints, "write", refuse)
    hook = hooks.Saving(Saver(tmp_path / "checkpoints"), MetricsLog(tmp_path / "m"))
    hook(at(run, 3), {})
    hook(at(run, 4), {})
    hook.wait()
    assert capsys.readouterr().out == "warning: checkpoint of step 3 not saved: the disk is full: no room\n"
    full.append(True)
    hook(at(run, 5), {})
    hook.wait()
    hook(at(run, 5), {})
    hook.wait()
    assert capsys.readouterr().out == "warning: checkpoint of step 5 not saved: the disk is full: no room\n"
    assert checkpoints.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000005"


def test_a_stop_waits_for_what_is_written_beside_the_training(run, tmp_path):
    asked, folder = Asked(), tmp_path / "checkpoints"
    asked(2, None)
    save = hooks.Saving(Saver(folder), MetricsLog(tmp_path / "m"), written=lambda tokens: time.sleep(0.05))
    with pytest.raises(Interrupted, match=r"^stopped by SIGINT after step 5; everything is saved$"):
        hooks.stop_when(asked, save, folder)(at(run, 5), {})


def test_a_stop_saves_and_says_what_is_saved(run, tmp_path, monkeypatch):
    asked = Asked()
    save = hooks.checkpoint(tmp_path / "checkpoints", MetricsLog(tmp_path / "m"), keep=2)
    hook = hooks.stop_when(asked, save, tmp_path / "checkpoints")
    hook(at(run, 4), {})
    assert checkpoints.latest(tmp_path / "checkpoints") is None
    asked(15, None)
    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM after step 5; everything is saved$") as stop:
        hook(at(run, 5), {})
    assert stop.value.code == 143

    def full(*arguments: object, **options: object) -> None:
        raise DiskFull("the disk is full")

    monkeypatch.setattr(checkpoints, "save", full)
    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM after step 7; what is saved ends with step 5$"):
        hook(at(run, 7), {})


def test_resuming_goes_back_to_the_checkpoint_and_cuts_the_log_there(run, tiny, tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert not hooks.resume(run, tmp_path / "checkpoints", log)
    for step in range(1, 6):
        log.append({"step": step, "seconds": 1.0})
        if step == 3:
            hooks.checkpoint(tmp_path / "checkpoints", log, keep=2)(at(run, step), {})
    kept = [parameter.detach().clone() for parameter in run.model.parameters()]
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.zero_()
    run.step = 0
    assert hooks.resume(run, tmp_path / "checkpoints", log)
    assert (run.step, run.source.tokens) == (3, 30)
    assert all(map(torch.equal, run.model.parameters(), kept))
    assert [record["step"] for record in read(log.path)] == [1, 2, 3]


def test_a_log_without_a_checkpoint_begins_anew(run, tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    assert not hooks.resume(run, tmp_path / "checkpoints", log)
    assert read(log.path) == []


def test_a_checkpoint_of_another_model_is_refused(run, shape, tiny, tmp_path):
    path = checkpoints.save(tmp_path, 1, run.state_dict())
    other = tiny(layers=1)
    strange = Run(tmp_path, other, groups.build(other.named_parameters(), AdamWSettings()), constant(), Counted())  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="trained weights"):
        strange.load_state_dict(checkpoints.load(path)[1])


def test_progress_shows_what_was_asked_for():
    shown: list[dict] = []
    meter = SimpleNamespace(update=lambda done, **facts: shown.append({"done": done, **facts}))
    hooks.progress(meter, ("loss", "reward"))(SimpleNamespace(step=4), {"loss": 1.23456, "other": 2.0})  # type: ignore[arg-type]
    assert shown == [{"done": 4, "loss": "1.235"}]


def test_going_on_after_a_kill_marks_the_best_checkpoint_again(tmp_path):
    folder = tmp_path / "checkpoints"
    for step, loss in ((1, 3.0), (2, 2.0)):
        checkpoints.save(folder, step, {"step": step}, metric=("validation_loss", loss))
    (folder / "best.json").write_text(
        '{"step": 1, "metric": "validation_loss", "value": 3.0}'
    )  # killed before the mark
    run = SimpleNamespace(step=2, load_state_dict=lambda state: None)
    assert hooks.resume(run, folder, MetricsLog(tmp_path / "metrics.jsonl"))
    assert json.loads((folder / "best.json").read_text())["step"] == 2
