"""Law 1: how the examples of a step are split into batches, rows and ranks changes no gradient."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from law_stages import LONGEST, STAGES, conversations, distance, documents, one_a_row, packed, step
from safetensors.torch import load_file

from ludus.data.batch import Batch
from ludus.learning.objectives.next_token import next_token
from ludus.model.exchange import save

pytestmark = pytest.mark.law
EXACT = 1e-6  # relative, in float32
KINDS = ["plain", "fused", "tied", "lora", "recomputed", "gpt2", "modern", "experts"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", STAGES)
def test_micro_batches_give_the_gradient_of_one_batch(models, stage: str, kind: str):
    model = models[kind]()
    objective, batches = STAGES[stage].objective, STAGES[stage].batches
    whole, metrics = step(model, objective, batches(model, 1))
    assert sum(float(gradient.abs().sum()) for gradient in whole.values()) > 0.1
    for splits in (8, 32) if kind == "plain" else (8,):
        gradient, again = step(model, objective, batches(model, splits))
        assert distance(gradient, whole) < EXACT
        assert again == pytest.approx(metrics, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("examples", [documents, conversations])
def test_packing_gives_the_gradient_of_padding(models, examples, kind: str):
    model = models[kind]()
    padded, _ = step(model, next_token, one_a_row(examples(), 1))
    for splits in (1, 4):
        assert distance(step(model, next_token, packed(examples(), splits))[0], padded) < EXACT


def test_wider_padding_changes_nothing(models):
    model, batch = models["plain"](), one_a_row(documents(), 1)[0]
    room = (0, LONGEST)
    wider = dataclasses.replace(
        batch,
        tokens=torch.nn.functional.pad(batch.tokens, room, value=7),
        weights=torch.nn.functional.pad(batch.weights, room),
    )
    assert distance(step(model, next_token, [wider])[0], step(model, next_token, [batch])[0]) < EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", [stage for stage in STAGES if "grpo" in stage])
def test_a_prompt_computed_once_for_its_answers_gives_the_gradient_of_each_alone(models, stage: str, kind: str):
    model = models[kind]()
    together = STAGES[stage].batches(model, 1)
    assert together[0].shared
    alone = apart(together[0])
    assert not alone.shared
    assert len(alone.tokens) > len(together[0].tokens)
    objective = STAGES[stage].objective
    # The advantages of a group sum to zero, so most of the gradient cancels and rounding weighs more.
    assert distance(step(model, objective, [alone])[0], step(model, objective, together)[0]) < 3 * EXACT


def test_a_batch_with_nothing_to_learn_changes_nothing(models):
    model, batches = models["plain"](), one_a_row(conversations(), 4)
    empty = dataclasses.replace(batches[0], weights=batches[0].weights * 0, weight=0.0)
    assert distance(step(model, next_token, [*batches, empty])[0], step(model, next_token, batches)[0]) < EXACT


def test_two_ranks_give_the_gradient_of_one_process(tiny, tmp_path: Path):
    model = tiny()
    save(model, tmp_path / "model")
    script = Path(__file__).with_name("two_ranks.py")
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": root}
    ranks = [
        subprocess.Popen([sys.executable, script, tmp_path, str(rank)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=120)[1].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    for name, stage in STAGES.items():
        whole, metrics = step(model, stage.objective, stage.batches(model, 1))
        limit = 3 * EXACT if "grpo" in name else EXACT  # where advantages cancel, rounding weighs more
        assert distance(load_file(tmp_path / "found" / f"{name}.safetensors"), whole) < limit, name
        assert json.loads((tmp_path / "found" / f"{name}.json").read_text()) == pytest.approx(
            metrics, rel=1e-5, abs=1e-5
        )


def apart(batch: Batch) -> Batch:
    """Give each answer of a shared row a row of its own, with the prompt before it."""
    rows = []
    fields = ("weights", "old_logps", "advantages", "reference_logps")
    for row, numbers in enumerate(batch.documents):
        for number in range(1, int(numbers.max()) + 1):
            where = ((numbers == 0) | (numbers == number)).nonzero()[:, 0]
            tokens = batch.tokens[row, where]
            rows.append((tokens, {name: _predictions(getattr(batch, name), row, where) for name in fields}))
    longest = max(len(tokens) for tokens, _ in rows)

    def stacked(parts: list[torch.Tensor], length: int) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(part, (0, length - len(part))) for part in parts])

    values = {
        name: stacked([row[name] for _, row in rows], longest - 1) for name in fields if rows[0][1][name] is not None
    }
    tokens = stacked([tokens for tokens, _ in rows], longest)
    return Batch(tokens=tokens, weight=batch.weight, **values)


def _predictions(table: torch.Tensor | None, row: int, where: torch.Tensor) -> torch.Tensor | None:
    """Pick what belongs to predicting the chosen tokens, the first left out."""
    return None if table is None else table[row, where[1:] - 1]
