"""Law 2: killed at any moment and begun again, a stage leaves what it would have left, to the last bit."""

import copy
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from law2_runs import RUN, before, outcome, stream

from ludus.base.config import resolve
from ludus.learning import checkpoints
from ludus.learning.loop import Run
from ludus.recipes import chain
from ludus.recipes.place import Place
from ludus.recipes.schema import Recipe

pytestmark = pytest.mark.law

STAGES = ["pretrain", "sft", "dpo", "grpo"]
EVERY = 3  # steps between checkpoints, in tiny.yaml
KILLS = 26  # of each stage


def acknowledged(stage: Path) -> int:
    """Return the step of the newest checkpoint, which must load and be no older than the log lines after it say."""
    newest = checkpoints.latest(stage / "checkpoints")
    saved = 0
    if newest is not None:
        saved, state = checkpoints.load(newest)
        assert state["step"] == saved == checkpoints.step_of(newest)
    log = stage / "metrics.jsonl"
    logged = [json.loads(line)["step"] for line in log.read_text().split("\n")[:-1]] if log.exists() else []
    begun = max(0, len(logged) - 1) // EVERY * EVERY  # the newest save whose step a later line follows
    assert saved >= begun - EVERY  # one write is under way at a time, and it began when that before it had ended
    assert logged == list(range(1, len(logged) + 1))
    return saved


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_again_and_again_ends_as_if_it_never_was(stage, tiny_run, ludus, tmp_path):
    draw = random.Random(stage)
    folder = before(stage, tiny_run, tmp_path / "run")
    began = time.monotonic()
    assert ludus(stage, "tiny.yaml", folder=tmp_path / "run").wait() == 0
    whole, expected = time.monotonic() - began, outcome(folder)
    assert expected == outcome(tiny_run / RUN / stage)
    steps = len(expected[0][0])
    training = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    start = whole - training

    kills, resumed, finished, newest = 0, 0, 0, 0
    shutil.rmtree(folder)
    while kills < KILLS or not finished:
        child = ludus(stage, "tiny.yaml", folder=tmp_path / "run")
        early = draw.random() < 0.25
        time.sleep(start * draw.random() if early else start + 6 * training / steps * draw.random())
        child.kill()
        code = child.wait()
        assert code in (0, -9), child.err
        if code == 0:
            assert outcome(folder) == expected
            shutil.rmtree(folder)
            finished, newest = finished + 1, 0
            continue
        saved = acknowledged(folder)
        assert saved >= newest, "an acknowledged checkpoint is lost"
        kills, resumed, newest = kills + 1, resumed + (newest > 0), saved
    assert resumed >= kills / 3, f"only {resumed} of {kills} lives had a checkpoint to begin from"


# What a stage's outcome does not depend on, and why. What keeps a run alive is not needed here and has its own test.
PLANNED = {"source.block", "source.batches", "source.dropped"}  # this text is one block, nothing ramps, nothing is lost
# Two sources side by side give no account of their tokens.
COUNTS = ("block", "batches", "dropped", "padded", "trained")
BESIDE = {f"source.{half}.{name}" for half in ("first", "second") for name in COUNTS}
IDLE = {
    "pretrain": PLANNED,
    "sft": BESIDE,
    "dpo": {"random"},  # without dropout nothing is drawn but the order of pairs, which has a seed of its own
    "grpo": {"random"},  # likewise; answers come from the source's own generator
    "sft adapter.kind=lora adapter.dropout=0.1": BESIDE,
}
MOMENTS, LAST = (9, 6, 12), 14  # steps whose checkpoints are gone on from, until one misses an item, and the last


def stopped_at(step: int, stage: Path, copied: Path) -> Path:
    """Copy a finished stage, which keeps all its checkpoints, as it was when it had just saved that of `step`."""
    shutil.copytree(stage, copied, ignore=shutil.ignore_patterns("model", "adapter"))
    for path in (copied / "checkpoints").iterdir():
        if checkpoints.step_of(path) > step:
            shutil.rmtree(path)
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    return copied


def leaves(state: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Return the paths of a state's items; what repeats for each parameter or each kind of question counts once."""
    if path in (("guard",), ("keeps",), ("random_cuda",)):
        return set()
    if path in (("model",), ("source", "metrics")) or not isinstance(state, dict):
        return {path}
    repeats = path in (("optimizer",), ("source", "curriculum"))
    return {leaf for key, inner in state.items() for leaf in leaves(inner, (*path, "*" if repeats else key))}


def forget(state: dict[str, Any], fresh: dict[str, Any] | None, path: tuple[str, ...]) -> None:
    """Put what a fresh run has in place of one item; of moments it has none yet, which is to say zeros."""
    key, *rest = path
    for name in list(state) if key == "*" else [key]:
        inner = None if fresh is None else fresh.get(name)
        if rest:
            forget(state[name], inner, tuple(rest))
        else:
            state[name] = torch.zeros_like(state[name]) if inner is None else inner


@pytest.mark.parametrize("case", IDLE)
def test_whatever_a_checkpoint_holds_is_missed_when_it_is_lost(case, tiny_run, tmp_path, monkeypatch):
    stage, *changes = case.split()
    folder = before(stage, tiny_run, tmp_path)
    monkeypatch.chdir(tmp_path)
    given = [f"{stage}.{change}" for change in [*changes, f"steps={LAST}", "keep=9"]]
    resolved = resolve(Recipe, recipe=tmp_path / "tiny.yaml", presets=tmp_path, environment={}, overrides=given)

    def log(load: Callable[[Run, dict], None] = Run.load_state_dict) -> Any:
        """Run the stage to its end, from its newest checkpoint if it has one; return what it logged and summed up."""
        monkeypatch.setattr(Run, "load_state_dict", load)
        chain.run(Place(resolved.settings, RUN, resolved.origins), stage, command=[])
        return stream(folder), json.loads((folder / "manifest.json").read_text())["summary"]

    def go_back(step: int) -> None:
        """Return to the moment of one checkpoint."""
        shutil.rmtree(folder)
        shutil.copytree(moments[step], folder)

    def misses(item: tuple[str, ...], step: int) -> bool:
        def without(run: Run, state: dict[str, Any]) -> None:
            forget(state, copy.deepcopy(run.state_dict()), item)
            restore(run, state)

        go_back(step)
        try:
            return log(without) != expected
        except (KeyError, RuntimeError):
            return True

    restore, expected = Run.load_state_dict, log()
    moments = {step: stopped_at(step, folder, tmp_path / f"after-{step}") for step in MOMENTS}
    for step in MOMENTS:
        go_back(step)
        assert log() == expected
    go_back(MOMENTS[0])
    newest = checkpoints.latest(folder / "checkpoints")
    assert newest is not None
    items = leaves(checkpoints.load(newest)[1])
    assert {".".join(item) for item in items if not any(misses(item, step) for step in MOMENTS)} == IDLE[case]
