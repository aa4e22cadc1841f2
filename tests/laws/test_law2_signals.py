"""Law 2 where somebody asks for the stop, the disk is full or a checkpoint is damaged: said in a line, nothing lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from law2_runs import RUN, before, outcome

from ludus.learning import checkpoints

pytestmark = pytest.mark.law

ROOT = Path(__file__).parents[2]
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def until(happened: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.002)


def has_logged(stage: Path, steps: int) -> Callable[[], bool]:
    log = stage / "metrics.jsonl"
    return lambda: log.exists() and log.read_bytes().count(b"\n") >= steps


def stopped(ludus: Callable, folder: Path, stage: str, steps: int, number: int = signal.SIGTERM) -> int:
    """Run a stage, ask it to stop once it has done that many steps, and return the step it stopped after."""
    for _ in range(9):
        child = ludus(stage, "tiny.yaml", folder=folder)
        until(has_logged(folder / RUN / stage, steps))
        child.kill(number)
        code = child.wait()
        assert child.err == ""
        if code != 0:
            break
        shutil.rmtree(folder / RUN / stage)  # it was done before it was asked
    assert code == CODES[number]
    newest = checkpoints.latest(folder / RUN / stage / "checkpoints")
    assert newest is not None
    step = checkpoints.step_of(newest)
    name = signal.Signals(number).name
    assert child.out.endswith(
        f"\nstopped by {name} after step {step}; everything is saved\ncontinue with: ludus resume {RUN}\n"
    )
    return step


@pytest.mark.parametrize(("stage", "number"), [("pretrain", signal.SIGINT), ("grpo", signal.SIGTERM)])
def test_a_stage_asked_to_stop_saves_and_goes_on_as_if_it_never_stopped(stage, number, ludus, tiny_run, tmp_path):
    folder = before(stage, tiny_run, tmp_path)
    asked = [stopped(ludus, tmp_path, stage, steps, number) for steps in (2, 8)]
    assert asked[0] >= 2
    assert asked[1] >= 8
    resumed = ludus("resume", str(RUN), folder=tmp_path)
    assert resumed.wait() == 0, resumed.err
    assert f"resuming after step {asked[1]} of 21" in resumed.out
    assert outcome(folder) == outcome(tiny_run / RUN / stage)


def test_a_process_started_by_a_shell_stops_and_goes_on_likewise(tiny_run, tmp_path):
    folder = before("pretrain", tiny_run, tmp_path)
    command = [sys.executable, "-m", "ludus.cli.main"]
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "pretrain", "tiny.yaml"], **options, **pipes) as child:
        until(has_logged(folder, 4))
        child.terminate()
        out, err = child.communicate()
    assert (child.returncode, err) == (143, "")
    assert "everything is saved" in out
    subprocess.run([*command, "resume", str(RUN)], check=True, stdout=subprocess.DEVNULL, **options)
    assert outcome(folder) == outcome(tiny_run / RUN / "pretrain")


def test_a_second_signal_leaves_at_once_and_what_was_saved_stays(ludus, tiny_run, tmp_path):
    folder = before("pretrain", tiny_run, tmp_path)
    step = stopped(ludus, tmp_path, "pretrain", 4)
    # Steps of a thousand micro-batches: the first signal has long to wait.
    changed = ["pretrain.steps=22", "pretrain.accumulate=1000"]
    child = ludus("pretrain", "tiny.yaml", *changed, folder=tmp_path)
    until(lambda: "rows an epoch" in child.out)
    time.sleep(0.2)
    child.kill(signal.SIGTERM)
    time.sleep(0.2)
    began = time.monotonic()
    child.kill(signal.SIGINT)
    assert child.wait() == 130
    assert time.monotonic() - began < 2
    assert child.err == ""
    assert "stopped; what was finished is kept\ncontinue with: ludus resume" in child.out
    # With the settings it was stopped with, the earlier attempt is there again.
    again = ludus("pretrain", "tiny.yaml", folder=tmp_path)
    assert again.wait() == 0, again.err
    assert f"resuming after step {step} of 21" in again.out
    assert outcome(folder) == outcome(tiny_run / RUN / "pretrain")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 4 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a disk of 4 MB")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_costs_checkpoints_and_no_more(ludus, tiny_run, small_disk):
    folder = before("pretrain", tiny_run, small_disk)
    (newest,) = [path for path in (tiny_run / RUN / "pretrain" / "checkpoints").iterdir() if path.name.endswith("21")]
    size = sum(file.stat().st_size for file in newest.iterdir())
    room = int(2.7 * size)  # for two, but not for the third that is written before the first of them goes
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
    child = ludus("pretrain", "tiny.yaml", folder=small_disk)
    assert child.wait() == 0, child.err
    assert child.err == ""
    warnings = [line for line in child.out.splitlines() if line.startswith("warning: ")]
    assert [line.split(":")[1] for line in warnings] == [
        f" checkpoint of step {step} not saved" for step in range(9, 22, 3)
    ]
    assert all("the disk is full" in line for line in warnings)
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    assert kept == ["step-00000003", "step-00000006"]
    assert checkpoints.load(folder / "checkpoints" / kept[1])[0] == 6
    assert outcome(folder) == outcome(tiny_run / RUN / "pretrain")


def test_asked_to_stop_with_a_full_disk_it_says_what_is_saved(ludus, tiny_run, small_disk):
    folder = before("pretrain", tiny_run, small_disk)
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    child = ludus("pretrain", "tiny.yaml", folder=small_disk)
    until(has_logged(folder, 5))
    child.kill(signal.SIGTERM)
    assert child.wait() == 143
    assert "; what is saved ends with step 0\n" in child.out
    assert child.err == ""
    (small_disk / "filler").unlink()
    again = ludus("resume", str(RUN), folder=small_disk)
    assert again.wait() == 0, again.err
    assert outcome(folder) == outcome(tiny_run / RUN / "pretrain")


def test_a_flipped_bit_is_one_line_of_advice_and_the_advice_is_good(ludus, tiny_run, tmp_path):
    folder = before("sft", tiny_run, tmp_path)
    step = stopped(ludus, tmp_path, "sft", 8)
    older, newest = sorted((folder / "checkpoints").glob("step-*"))
    tensors = newest / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)
    child = ludus("resume", str(RUN), folder=tmp_path)
    assert child.wait() == 2
    line = child.err.removesuffix("\n")
    assert "\n" not in line
    assert line.startswith(f"ludus: {tensors.relative_to(tmp_path)} is damaged")
    assert line.endswith(f"; delete step-{step:08d} to go on from {older.name}")
    shutil.rmtree(newest)
    again = ludus("resume", str(RUN), folder=tmp_path)
    assert again.wait() == 0, again.err
    assert outcome(folder) == outcome(tiny_run / RUN / "sft")
