"""What follows from skipped updates: they are told, and many in a row take the run back and past the data."""

import json
import math
import random
import shutil

import pytest
import torch
from learning.alive import Life, Troubled, fresh, train

from ludus.base.errors import DataError
from ludus.learning import checkpoints
from ludus.learning.guard_settings import RecoverySettings
from ludus.learning.loop import Hook
from ludus.runs.metrics import read


def weights(run) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


def moments(run) -> list[torch.Tensor]:
    return [value.clone() for state in run.optimizer.state_dict().values() for value in state.values()]


def stop_at_once(life: Life) -> Hook:
    """Let recovery look, and stop."""

    def hook(run, metrics):
        assert not life.recovery(run, metrics)
        run.stopped = "for a look"

    return hook


def test_fifty_broken_batches_and_twenty_spikes_in_a_training_are_seventy_skips(tmp_path):
    chosen = random.Random(0).sample(range(150, 700), 70)
    run = fresh(tmp_path, Troubled(chosen[:50], chosen[50:]))
    losses: dict[int, float] = {}

    def poisoned(run, metrics):
        losses[run.step - 1] = metrics["loss"]
        assert bool(weights(run).isfinite().all())
        assert (run.guard.verdict() != "ok") == (run.step - 1 in chosen)

    train(run, steps=700, after=[poisoned])
    assert int(run.guard.skips) == 70
    assert all(bool(moment.isfinite().all()) for moment in moments(run))
    end = [losses[step] for step in range(600, 700) if step not in chosen]
    assert sum(end) / len(end) < 0.6 * losses[0]


def test_a_skipped_step_leaves_the_weights_and_moments_as_they_were(tmp_path):
    run = fresh(tmp_path, Troubled(broken=[12], spikes=[]))
    train(run, steps=12, after=[])
    before, kept = weights(run), moments(run)
    train(run, steps=13, after=[])
    assert torch.equal(before, weights(run))
    assert all(map(torch.equal, kept, moments(run)))
    train(run, steps=14, after=[])
    assert not torch.equal(before, weights(run))


def test_each_skip_is_told_and_logged_with_its_cause_and_what_to_change(tmp_path, capsys):
    life = Life(tmp_path, broken=[20], spikes=[25])
    life.live(30)
    first, second = read(tmp_path / "events.jsonl")
    assert {name: first[name] for name in ("step", "kind", "loss")} == {"step": 21, "kind": "non-finite", "loss": "nan"}
    assert (second["step"], second["kind"]) == (26, "spike")
    assert second["loss"] > 4 * second["usual"]["loss"] > 0
    assert second["gradient_norm"] > second["usual"]["gradient_norm"] > 0
    assert "no finite loss" in first["cause"]
    assert "precision=float32" in first["advice"]
    assert "unlike those before" in second["cause"]
    assert "lower pretrain.optimizer.learning_rate" in second["advice"]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["  step 21 skipped", "  step 26 skipped"]
    json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0], parse_constant=pytest.fail)
    logged = read(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in logged] == list(range(1, 31))
    assert [record["step"] for record in logged if record.get("skipped")] == [21, 26]


def test_many_in_a_row_take_the_run_back_and_past_the_data(tmp_path, capsys):
    life = Life(tmp_path, broken=[21, 22, 23])
    life.live(30)
    events = read(tmp_path / "events.jsonl")
    assert [event["kind"] for event in events] == ["non-finite"] * 3 + ["rollback"]
    back = events[3]["to"]
    assert back < 21
    assert events[3]["step"] == 24
    assert life.run.step == 30
    assert life.run.source.number == 30 + 24 - back  # type: ignore[attr-defined]
    assert [record["step"] for record in read(tmp_path / "metrics.jsonl")] == list(range(1, 31))
    assert not any(record.get("skipped") for record in read(tmp_path / "metrics.jsonl"))
    assert int(life.run.guard.skips) == 3
    assert f"back to step {back}, past the data" in capsys.readouterr().out


def test_the_state_after_going_back_is_that_of_the_checkpoint_but_for_the_source(tmp_path):
    life = Life(tmp_path, broken=[21, 22, 23])
    life.live(23)
    newest = checkpoints.latest(tmp_path / "checkpoints")
    assert newest is not None
    step, state = checkpoints.load(newest)
    for path in (tmp_path / "checkpoints").glob("step-*"):
        assert checkpoints.step_of(path) <= 23
    with torch.no_grad():
        for parameter in life.run.model.parameters():
            parameter.add_(1.0)
    life.run.guard.skipped_in_a_row = torch.tensor(2)
    with life.saver:
        train(life.run, steps=24, after=[stop_at_once(life)])
    assert life.run.step == step
    saved = torch.cat([value.flatten() for value in state["model"].values()])
    assert torch.equal(weights(life.run), saved)
    assert life.run.keeps["average"].updates == state["keeps"]["average"]["updates"]
    assert int(life.run.guard.skipped_in_a_row) == 0
    assert life.run.source.number == 24  # type: ignore[attr-defined]


def test_going_back_in_vain_ends_with_advice(tmp_path):
    life = Life(tmp_path, broken=range(21, 999), recovery=RecoverySettings(after=3, tries=2))
    with pytest.raises(
        DataError, match=r"3 updates in a row.*going back 2 times has not helped.*learning_rate"
    ) as stop:
        life.live(60)
    assert "\n" not in str(stop.value)
    assert [event["kind"] for event in read(tmp_path / "events.jsonl")].count("rollback") == 2
    assert life.run.source.number == 30  # type: ignore[attr-defined]


def test_tries_count_anew_once_the_run_gets_further(tmp_path):
    broken = [number for start in (21, 33, 45, 57) for number in range(start, start + 3)]
    life = Life(tmp_path, broken=broken, recovery=RecoverySettings(after=3, tries=1))
    life.live(60)
    assert [event["kind"] for event in read(tmp_path / "events.jsonl")].count("rollback") == 4


def test_short_of_where_it_went_back_from_a_resumed_run_has_not_got_further(tmp_path):
    life = Life(tmp_path, recovery=RecoverySettings(after=1, tries=1))
    life.live(8)
    life.recovery.load_state_dict({"events": 0, "tries": 1, "furthest": 12})
    again = Life(tmp_path, recovery=RecoverySettings(after=1, tries=1))
    again.recovery.load_state_dict(life.recovery.state_dict())
    for step, tries in [(10, 1), (12, 1), (13, 0)]:
        again.run.step = step
        assert again.recovery(again.run, {})
        assert again.recovery.state_dict()["tries"] == tries


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    life = Life(tmp_path, broken=[1, 2, 3], every=50)
    with pytest.raises(DataError, match="there is no checkpoint yet to go back to"):
        life.live(20)


def test_events_after_the_state_a_process_begins_from_are_dropped(tmp_path):
    Life(tmp_path, broken=[10, 20]).live(16)
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "earlier")
    Life(tmp_path, broken=[10, 20]).live(22)
    assert [event["step"] for event in read(tmp_path / "events.jsonl")] == [11, 21]
    shutil.rmtree(tmp_path / "checkpoints")
    shutil.move(tmp_path / "earlier", tmp_path / "checkpoints")
    again = Life(tmp_path, broken=[10])
    assert again.live(22)
    assert [event["step"] for event in read(tmp_path / "events.jsonl")] == [11]
    shutil.rmtree(tmp_path / "checkpoints")
    assert not Life(tmp_path).live(5)
    assert read(tmp_path / "events.jsonl") == []


def test_the_second_skip_in_a_row_has_another_cause(tmp_path):
    life = Life(tmp_path, broken=[20, 21])
    life.live(24)
    causes = [event["cause"] for event in read(tmp_path / "events.jsonl")]
    assert "skip 2 in a row" in causes[1]
    assert life.run.guard.usual()[0] < math.log(61)
