import dataclasses
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from ludus.base.errors import CheckpointError, DataError
from ludus.data.shards import TokenShards
from ludus.data.sources import pretraining
from ludus.learning.loop import Run, train
from ludus.learning.objectives.next_token import next_token
from ludus.model.transformer import build
from ludus.optim import groups
from ludus.optim.schedules import constant, warmup
from ludus.optim.settings import AdamWSettings, MuonSettings
from ludus.parallel.mesh import Mesh

TEXT = TokenShards(np.tile(np.arange(60, dtype=np.uint16), 20), np.arange(0, 1201, 100), 1200)


def source():
    return pretraining(TEXT, context=16, rows=4, pad_token=60, seed=1)


def fresh(shape, settings=None, schedule=None, **changes) -> Run:
    model = build(shape(**changes), seed=0)
    optimizer = groups.build(model.named_parameters(), settings or AdamWSettings(learning_rate=0.01))
    return Run(Path(), model, optimizer, schedule or constant(), source())


def go(run: Run, steps: int, **options) -> list[dict[str, float]]:
    seen: list[dict[str, float]] = []
    train(run, next_token, steps=steps, mesh=Mesh(), hooks=[lambda run, metrics: seen.append(dict(metrics))], **options)
    return seen


def weights(run: Run) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.model.parameters()]


@pytest.mark.parametrize("settings", [AdamWSettings(learning_rate=0.01), MuonSettings()])
def test_a_model_learns(shape, settings):
    losses = [metrics["loss"] for metrics in go(fresh(shape, settings), 40)]
    assert losses[0] == pytest.approx(np.log(61), rel=1e-6)
    assert losses[-1] < 0.7 * losses[0]


def test_steps_that_teach_nothing_are_an_error(shape):
    run = fresh(shape)
    batch = next(run.source)
    run.source = iter([dataclasses.replace(batch, weights=batch.weights * 0, weight=0.0)])
    with pytest.raises(DataError, match="step 0 has no prediction of non-zero weight"):
        go(run, 1)


def test_hooks_are_called_after_every_step_with_its_number(shape):
    run, seen = fresh(shape), []
    train(run, next_token, steps=3, mesh=Mesh(), hooks=[lambda run, _: seen.append(run.step)])
    assert seen == [1, 2, 3]
    train(run, next_token, steps=3, mesh=Mesh(), hooks=[lambda run, _: seen.append(run.step)])
    assert seen == [1, 2, 3]


def test_accumulated_batches_are_one_step(shape):
    run, alone = fresh(shape), fresh(shape)
    alone.source = pretraining(TEXT, context=16, rows=12, pad_token=60, seed=1)
    go(run, 2, accumulate=3)
    go(alone, 2)
    for one, other in zip(weights(run), weights(alone), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_norm_is_reported_before_clipping(shape):
    run = fresh(shape)
    with torch.no_grad():
        run.model.lm_head.weight.normal_(std=1.0, generator=torch.Generator().manual_seed(0))
    loose, tight = go(run, 1, clip=1e9)[0], go(run, 2, clip=1e-9)[0]
    assert min(loose["gradient_norm"], tight["gradient_norm"]) > 0.1


def test_the_schedule_sets_the_rate_of_each_step(shape):
    still = fresh(shape, schedule=constant())
    gentle = fresh(shape, schedule=warmup(1000))
    before = weights(still)
    go(still, 1)
    go(gentle, 1)
    moved = [sum(float((a - b).norm()) for a, b in zip(before, weights(run), strict=True)) for run in (still, gentle)]
    assert moved[1] < 0.01 * moved[0]


@pytest.mark.parametrize("settings", [AdamWSettings(), MuonSettings()])
@pytest.mark.parametrize("stopped", [1, 3])
def test_a_run_continues_from_its_state_bit_for_bit(shape, settings, stopped: int):
    whole = fresh(shape, settings, dropout=0.2)
    torch.manual_seed(5)
    expected = go(whole, 6)
    first = fresh(shape, settings, dropout=0.2)
    torch.manual_seed(5)
    go(first, stopped)
    state = first.state_dict()
    state = {**state, "model": {name: value.clone() for name, value in state["model"].items()}}
    again = fresh(shape, settings, dropout=0.2)
    list(islice(again.source, 2))
    torch.manual_seed(6)
    again.load_state_dict(state)
    assert go(again, 6) == expected[stopped:]
    assert all(torch.equal(one, other) for one, other in zip(weights(again), weights(whole), strict=True))


def test_the_state_of_another_stage_is_refused(shape):
    run, other = fresh(shape), fresh(shape)
    other.model.embed_tokens.requires_grad_(False)
    with pytest.raises(CheckpointError, match="start the stage again"):
        run.load_state_dict(other.state_dict())
