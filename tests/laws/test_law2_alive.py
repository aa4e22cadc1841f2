"""Law 2 for what keeps a run alive: skips, rollbacks, averages, patience and the best, killed while being written."""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from law2_alive import STEPS, life, outcome

from ludus.learning import checkpoints

pytestmark = pytest.mark.law

ROOT = Path(__file__).parents[2]
KILLS = 20
MOMENTS = (20, 40, 48, 56, 28, 16)  # steps whose checkpoints are gone on from, until one misses an item
IDLE = {"keeps.recovery.furthest"}  # felt where a checkpoint lies between a rollback's two ends; see test_recovery


@pytest.fixture
def lives() -> Iterator[Callable[[Path, Callable[[], bool]], int]]:
    """Live in a process: `lives(folder, due)` kills it as soon as `due()` is true and returns its exit code."""
    script = Path(__file__).parent / "law2_alive.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, str(script)], **pipes) as nursery:

        def one(folder: Path, due: Callable[[], bool]) -> int:
            folder.mkdir(exist_ok=True)
            nursery.stdin.write(f"{folder}\n")
            nursery.stdin.flush()
            child = int(nursery.stdout.readline())
            while not due():
                if (folder / "outcome.json").exists():
                    break
                time.sleep(0.0005)
            else:
                os.kill(child, signal.SIGKILL)
            code = int(nursery.stdout.readline())
            nursery.stdin.write("\n")
            nursery.stdin.flush()
            return code

        yield one
        nursery.stdin.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a run that nobody disturbed, and its outcome."""
    folder = tmp_path_factory.mktemp("whole")
    ended = life(folder)
    ended.live(STEPS)
    return folder, json.loads(json.dumps(outcome(ended)))


def test_the_run_has_everything_that_is_to_survive(whole):
    _, expected = whole
    kinds = [event["kind"] for event in expected["events"]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"non-finite": 10, "spike": 3, "rollback": 3}
    assert [event.get("try") for event in expected["events"] if event["kind"] == "rollback"] == [1, 2, 1]
    step, stopped, _, skips = expected["ended"]
    assert 44 < step < STEPS
    assert "has not improved" in stopped
    assert skips == 13
    assert expected["marker"]["step"] == expected["best"][0]


def test_killed_in_the_middle_of_writes_it_ends_as_if_it_never_was(whole, lives, tmp_path):
    _, expected = whole
    draw, folder = random.Random(0), tmp_path / "run"
    kills = caught = resumed = finished = newest = 0

    def saved() -> int:
        path = checkpoints.latest(folder / "checkpoints")
        return checkpoints.step_of(path) if path else 0

    while kills < KILLS or not finished:
        further, pause = newest + draw.choice([0, 0, 1, 9]), draw.uniform(0, 0.01)
        writing = lambda further=further: saved() >= further and list((folder / "checkpoints").glob(".step-*"))  # noqa: E731
        code = lives(folder, lambda writing=writing, pause=pause: bool(writing()) and time.sleep(pause) is None)
        if code == 0:
            assert json.loads((folder / "outcome.json").read_text()) == expected
            shutil.rmtree(folder)
            finished, newest = finished + 1, 0
            continue
        assert code == -signal.SIGKILL
        caught += bool(list((folder / "checkpoints").glob(".step-*")))
        assert saved() >= newest, "an acknowledged checkpoint is lost"
        kills, resumed, newest = kills + 1, resumed + (newest > 0), saved()
        for path in (folder / "checkpoints").glob("step-*"):
            checkpoints.load(path)
    assert caught >= kills / 3, f"only {caught} of {kills} kills met a write"
    assert resumed >= kills / 3, f"only {resumed} of {kills} lives had a checkpoint to begin from"


def leaves(state: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of what a guard and the keeps have in a checkpoint; copies of all weights count once."""
    if isinstance(state, dict) and path[-1:] != ("average",):
        for key, inner in state.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path


def test_whatever_keeps_a_run_alive_is_missed_when_it_is_lost(whole, tmp_path, monkeypatch):
    _, expected = whole
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nobody pulls the plug here
    moments = {}
    first = life(tmp_path / "moments")
    inner = first.saver.save

    def copied(step: int, *arguments: Any, **options: Any) -> None:
        inner(step, *arguments, **options)
        first.saver.wait()
        if step in MOMENTS:  # a step that is gone through again is another moment
            moments.setdefault(step, shutil.copytree(first.folder, tmp_path / f"{time.monotonic_ns()}-at-{step}"))

    first.saver.save = copied  # type: ignore[method-assign]
    first.live(STEPS)
    assert json.loads(json.dumps(outcome(first))) == expected
    fresh = life(tmp_path / "fresh").run.state_dict()

    def misses(item: tuple[str, ...], folder: Path) -> bool:
        copy_of = shutil.copytree(folder, tmp_path / "without", dirs_exist_ok=False)
        ended = life(copy_of)
        restore = ended.run.load_state_dict

        def without(state: dict[str, Any]) -> None:
            ended.run.load_state_dict = restore  # type: ignore[method-assign]
            *way, last = item
            place, new = state, fresh
            for key in way:
                place, new = place[key], new[key]
            place[last] = copy.deepcopy(new[last])
            restore(state)

        ended.run.load_state_dict = without  # type: ignore[method-assign]
        try:
            ended.live(STEPS)
            return json.loads(json.dumps(outcome(ended))) != expected
        except (KeyError, RuntimeError):
            return True
        finally:
            shutil.rmtree(copy_of)

    items = {(part, *item) for part in ("guard", "keeps") for item in leaves(fresh[part])}
    assert len(items) >= 12
    unmissed = {".".join(item) for item in items if not any(misses(item, moments[step]) for step in MOMENTS)}
    assert unmissed == IDLE
