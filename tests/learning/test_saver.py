"""Checkpoints written beside the training: the copy is of the moment, the order is kept, and no kill costs anything."""

import errno
import json
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from ludus.base import files
from ludus.base.errors import DiskFull
from ludus.learning import checkpoints, saver
from ludus.learning.checkpoints import latest, load
from ludus.learning.saver import Saver


def whole_step(path: Path | None) -> int:
    """Load a checkpoint, check that all its parts are of one step, and return that."""
    assert path is not None
    step, state = load(path)
    assert state["step"] == step
    assert all(bool((tensor == step).all()) for tensor in state["weights"])
    return step


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


class Gate:
    """Holds the writing thread until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(10)


def test_what_changes_after_the_save_is_not_in_it(tmp_path):
    weights = [torch.ones(1000), torch.ones(10, 10)[:, 3], torch.ones(())]
    state, gate = {"weights": weights, "step": 1, "plain": {"list": [1]}}, Gate()
    with Saver(tmp_path) as writer:
        writer.save(1, state, before=gate)
        for weight in weights:
            weight.mul_(2)
        state["step"] = 2
        state["plain"]["list"].append(2)  # type: ignore[index]
        assert gate.reached.wait(10)
        assert writer.writing
        assert latest(tmp_path) is None
        gate.opened.set()
    assert whole_step(latest(tmp_path)) == 1
    assert load(tmp_path / "step-00000001")[1]["plain"] == {"list": [1]}


def test_an_asynchronous_checkpoint_is_the_same_files_as_another(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tied = torch.ones(5)
    state = {"views": [base.T, base[1:], base], "tied": [tied, tied], "half": base.half(), "empty": torch.zeros(0, 2)}
    checkpoints.save(tmp_path / "one", 3, state)
    with Saver(tmp_path / "other") as writer:
        writer.save(3, state)
    for name in ("state.json", "tensors.safetensors", "sha256.json"):
        first, second = ((tmp_path / each / "step-00000003" / name).read_bytes() for each in ("one", "other"))
        assert first == second


def test_buffers_are_used_again_and_follow_the_state(tmp_path):
    kept = None
    with Saver(tmp_path, keep=9) as writer:
        for step, sizes in [(1, [4, 5]), (2, [4, 5]), (3, [4, 6]), (4, [4]), (5, [4, 7, 8])]:
            writer.save(step, {"weights": [torch.full((size,), float(step)) for size in sizes], "step": step})
            writer.wait()
            buffer = writer._buffers.tensors["weights/0"]
            assert step == 1 or buffer is kept
            kept = buffer
            assert len(writer._buffers.tensors) == len(sizes)
    assert [whole_step(path) for path in sorted(tmp_path.glob("step-*"))] == [1, 2, 3, 4, 5]


def test_a_second_save_waits_for_the_first_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saver, "WORTH_A_WORD_SECONDS", 0.01)
    order: list[str] = []

    def slow(name: str):
        return lambda: (time.sleep(0.03), order.append(name))

    with Saver(tmp_path, keep=9) as writer:
        for step in (1, 2, 3):
            writer.save(step, {"step": step}, before=slow(f"before {step}"), after=slow(f"after {step}"))
    assert order == [f"{when} {step}" for step in (1, 2, 3) for when in ("before", "after")]
    assert writer.saved == 3
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("  step 2 waited 0.")
    assert line.endswith("for the checkpoint of step 1 to be written; set checkpoint_every higher to save less often")


def test_what_fails_in_the_thread_is_raised_once_and_by_the_next_call(tmp_path, monkeypatch):
    writer = Saver(tmp_path)
    writer.save(1, {"weights": [], "step": 1})
    writer.wait()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_seal", full)
    writer.save(2, {"step": 2})
    with pytest.raises(DiskFull, match="step-00000002"):
        writer.save(3, {"step": 3})
    writer.wait()
    writer.save(4, {"step": 4})
    with pytest.raises(DiskFull, match="step-00000004"):
        writer.wait()
    writer.check()
    monkeypatch.undo()
    writer.save(5, {"weights": [], "step": 5})
    writer.wait()
    assert (writer.saved, steps(tmp_path)) == (5, [1, 5])


def test_what_a_state_cannot_hold_is_said_at_once(tmp_path):
    with Saver(tmp_path) as writer, pytest.raises(TypeError, match="state/rate is of type object"):
        writer.save(1, {"rate": object()})


def test_leaving_because_of_a_mistake_waits_for_the_write_and_raises_the_mistake(tmp_path):
    def mistaken() -> None:
        with Saver(tmp_path) as writer:
            writer.save(1, {"weights": [], "step": 1}, before=lambda: time.sleep(0.05))
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        mistaken()
    assert whole_step(latest(tmp_path)) == 1


def test_the_newest_and_the_best_are_kept_and_the_best_is_marked(tmp_path):
    losses = {1: 3.0, 2: 2.0, 3: float("nan"), 4: 2.0, 5: None, 6: 2.5, 7: 1.5, 8: 1.7}
    best = []
    with Saver(tmp_path, keep=2, metric="validation_loss") as writer:
        for step, loss in losses.items():
            metrics = {"loss": 1.0} | ({} if loss is None else {"validation_loss": loss})
            writer.save(step, {"weights": [], "step": step}, metrics=metrics)
            writer.wait()
            marker = json.loads((tmp_path / "best.json").read_text())
            assert marker.keys() == {"step", "metric", "value"}
            assert marker["value"] == losses[marker["step"]]
            best.append(marker["step"])
    assert best == [1, 2, 2, 2, 2, 2, 7, 7]
    assert steps(tmp_path) == [7, 8]
    with Saver(tmp_path, keep=1, metric="validation_loss") as writer:
        for step in (9, 10):
            writer.save(step, {"weights": [], "step": step}, metrics={"validation_loss": 1.6})
    assert steps(tmp_path) == [7, 10]
    checkpoints.save(tmp_path, 6, {"step": 6})
    assert steps(tmp_path) == [6]
    assert not (tmp_path / "best.json").exists()


def test_the_best_is_found_without_the_marker(tmp_path):
    checkpoints.save(tmp_path, 1, {}, metric=("validation_loss", 1.0))
    (tmp_path / "best.json").unlink()
    checkpoints.save(tmp_path, 2, {}, keep=1, metric=("validation_loss", 2.0))
    checkpoints.save(tmp_path, 3, {}, keep=1)
    assert steps(tmp_path) == [1, 3]
    assert checkpoints.best(tmp_path) == (tmp_path / "step-00000001", 1.0)
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 1


def train_and_save(folder: Path, acknowledge: int) -> None:
    """Change weights in place and save them, without ever waiting for the disk but where the saver does."""
    start = 0 if (path := latest(folder)) is None else whole_step(path)
    weights = [torch.full((size,), float(start)) for size in (60_000, 7, 1)]
    writer = Saver(folder, keep=2, metric="loss")
    for step in range(start + 1, start + 5000):
        for weight in weights:
            weight.add_(1)
        if step % 3 == 0:
            said = step.to_bytes(8, "big")
            state = {"weights": weights, "step": step}
            metrics = {"loss": float(step % 7)}
            writer.save(step, state, metrics=metrics, after=lambda said=said: os.write(acknowledge, said))


@pytest.mark.law
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the children only save
def test_no_kill_during_an_asynchronous_write_costs_the_newest_or_the_best(tmp_path):
    chance, last, caught = random.Random(0), 0, 0
    for _ in range(32):
        reading, acknowledge = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                train_and_save(tmp_path, acknowledge)
            finally:
                os._exit(1)
        os.close(acknowledge)
        acknowledged = int.from_bytes(os.read(reading, 8), "big")  # progress: this child has saved, or died
        assert acknowledged == last + 3
        until = time.monotonic() + chance.uniform(0, 0.02)
        anywhere = chance.random() < 0.4  # else in the middle of a write, if it has not just ended
        while time.monotonic() < until or not (anywhere or list(tmp_path.glob(".step-*"))):
            pass
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        while said := os.read(reading, 8):
            acknowledged = int.from_bytes(said, "big")
        os.close(reading)
        caught += bool(list(tmp_path.glob(".step-*")))
        found = {whole_step(path): path for path in tmp_path.glob("step-*")}  # the older ones are whole too
        last = max(found)
        assert last - acknowledged in (0, 3)
        best = checkpoints.best(tmp_path)
        assert best is not None
        assert best[1] == min(step % 7 for step in found)
        assert acknowledged < 21 or best[1] == 0
    assert caught >= 12
    shutil.rmtree(tmp_path)
