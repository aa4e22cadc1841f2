"""Pretraining as a person asks for it: families, experts, ramps, a mixture, averages, early stopping, rows that fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ludus.learning import checkpoints
from ludus.model import exchange

pytestmark = pytest.mark.run
RUN = Path("runs/tiny/pretrain")
STEPS = "pretrain.steps=6"


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / RUN / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["model.family=gpt2", "pretrain.z_loss=1e-4", "pretrain.label_smoothing=0.1"], {"nll", "z_loss"}),
        (["model.family=modern", "model.dropout=0", "model.ngram_rows=50"], {"learning_rate_table"}),
        (["model.experts.count=4"], {"expert_load_maximum"}),
        (["model.window=16", "model.qk_norm=rms", "optimizer.kind=adamw"], set()),
        (["pretrain.average.decay=0.9", "pretrain.recompute=true"], set()),
        (["pretrain.average.last_steps=3", "pretrain.schedule.shape=wsd"], set()),
        (["pretrain.measure_every=2", "data.prefetch=0"], {"update_ratio_matrix"}),
        (["pretrain.auto_rows=true"], set()),
        (["data.context_ramp=[{start: 0, context: 40}, {start: 0.5, context: 160}]"], set()),
        (["data.rows_ramp=[{start: 0.5, rows: 4}]"], set()),
        (["precision=float16"], set()),
    ],
)
def test_each_option_trains_and_leaves_a_model(run, ludus, options: list[str], expected: set[str]):
    child = ludus("pretrain", "tiny.yaml", STEPS, *options, folder=run)
    assert child.wait() == 0, child.err
    found = metrics(run)
    assert [line["step"] for line in found] == list(range(1, 7))
    assert expected <= set().union(*found)
    assert {"learning_rate_matrix", "waiting", "memory_bytes", "gradient_seconds"} <= set(found[-1])
    assert (run / RUN / "model" / "model.safetensors").is_file()
    assert "0 dropped" in child.out
    assert json.loads((run / RUN / "manifest.json").read_text())["summary"]["account"]["dropped"] == 0


def test_a_mixture_is_read_in_its_shares(run, ludus):
    (run / "a.txt").write_text("one sentence after the other, again and again. " * 60)
    (run / "b.txt").write_text("what the second domain says is something else. " * 60)
    domains = "data.mixture={a: {path: a.txt, weight: 3}, b: {path: b.txt, weight: 1}}"
    child = ludus("pretrain", "tiny.yaml", STEPS, "corpus.path=null", "data.context=40", domains, folder=run)
    assert child.wait() == 0, child.err
    last = metrics(run)[-1]
    assert last["share_a"] == pytest.approx(0.75, abs=0.1)
    assert last["share_a"] + last["share_b"] == pytest.approx(1)


def test_what_is_left_is_the_average_where_one_was_taken(run, ludus):
    child = ludus("pretrain", "tiny.yaml", STEPS, "pretrain.average.decay=0.9", folder=run)
    assert child.wait() == 0, child.err
    _, state = checkpoints.load(checkpoints.latest(run / RUN / "checkpoints"))
    left = dict(exchange.load(run / RUN / "model").named_parameters())
    (average,) = state["keeps"]["average"]["kept"]
    assert all(torch.equal(left[name], value) for name, value in average.items())
    assert not all(torch.equal(left[name], value) for name, value in state["model"].items())


def test_training_that_no_longer_helps_stops_and_ends_with_its_best(run, ludus):
    options = ["pretrain.stopping.patience=1", "pretrain.stopping.best=true", "pretrain.validate_every=1"]
    worse = ["pretrain.steps=30", "optimizer.kind=adamw", "optimizer.learning_rate=0.5", "pretrain.spike.judge=false"]
    child = ludus("pretrain", "tiny.yaml", *options, *worse, folder=run)
    assert child.wait() == 0, child.err
    found = metrics(run)
    assert len(found) < 30
    assert "stopped early after step" in child.out
    best, _ = checkpoints.best(run / RUN / "checkpoints")
    assert checkpoints.step_of(best) < len(found)
    _, state = checkpoints.load(best)
    left = dict(exchange.load(run / RUN / "model").named_parameters())
    assert all(torch.equal(left[name], value) for name, value in state["model"].items())


def test_metrics_go_to_tensorboard_as_well(run, ludus):
    pytest.importorskip("tensorboard")
    child = ludus("pretrain", "tiny.yaml", STEPS, "trackers=[tensorboard]", folder=run)
    assert child.wait() == 0, child.err
    assert list((run / RUN / "tensorboard").glob("events.*"))
