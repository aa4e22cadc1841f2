"""Choices are measured without a trace, cached, recorded, and never made in a run too short for it."""

import json

import pytest
import torch

from ludus.data.batch import Batch
from ludus.learning import autotune
from ludus.learning.objectives.next_token import next_token

LONG = 10_000_000  # steps, of a model so small


@pytest.fixture
def batch() -> Batch:
    tokens = torch.randint(61, (4, 17), generator=torch.Generator().manual_seed(0))
    return Batch(tokens=tokens, weights=torch.ones(4, 16), weight=64.0)


@pytest.fixture(autouse=True)
def settings_as_before():
    threads, mode = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(mode)


def chosen(model, batch, **how) -> autotune.Choice:
    return autotune.choose(model, next_token, batch, **{"steps_planned": LONG, "cache": None, **how})


def test_measuring_leaves_no_trace(tiny, batch):
    model = tiny(dropout=0.3).train()
    model.register_buffer("counts", torch.arange(3.0))
    model.embed_tokens.weight.grad = torch.ones_like(model.embed_tokens.weight)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    random, settings = torch.get_rng_state(), autotune.current(model)

    def counting(model, batch):
        model.counts += 1
        torch.rand(3)
        return next_token(model, batch)

    found = autotune.choose(model, counting, batch, steps_planned=LONG, cache=None)
    assert found.source == "measured"
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert autotune.current(model) == settings
    assert torch.equal(model.embed_tokens.weight.grad, torch.ones_like(model.embed_tokens.weight))
    assert model.norm.weight.grad is None
    assert model.training


def test_a_short_run_measures_nothing(tiny, batch, tmp_path, monkeypatch):
    monkeypatch.setattr(autotune, "_seconds", lambda *given: pytest.fail("it measured"))
    found = chosen(tiny(), batch, steps_planned=10, cache=tmp_path)
    assert (found.source, found.settings) == ("rule", autotune.RULES)
    assert "too short" in found.reasons[0]
    assert not list(tmp_path.iterdir())


def test_the_fastest_is_taken_and_what_cannot_run_is_said(tiny, batch, monkeypatch):
    times = {"auto": 1.0, "plain": 0.99, "fused": 0.5}

    def seconds(model, objective, batch):
        if model.head_chunk_entries == 0:
            raise RuntimeError("no memory\nfor that")
        return times[model.attention_backend]

    monkeypatch.setattr(autotune, "_seconds", seconds)
    tries = {"attention": ["plain", "fused"], "head": [0]}
    found = chosen(tiny(), batch, tries=tries)
    assert found.settings["attention"] == "fused"
    assert found.settings["head"] is None
    assert [reason.partition(":")[0] for reason in found.reasons[1:]] == [
        "attention plain",
        "attention fused",
        "head 0",
    ]
    assert "taken" in found.reasons[2]
    assert found.reasons[3].endswith("cannot be used here (no memory)")
    assert "attention fused" in str(found)


def test_what_was_measured_is_cached_for_this_machine_and_shape(tiny, shape, batch, tmp_path, monkeypatch):
    first = chosen(tiny(), batch, cache=tmp_path)
    monkeypatch.setattr(autotune, "_seconds", lambda *given: pytest.fail("it measured again"))
    again = chosen(tiny(), batch, cache=tmp_path)
    assert (again.source, again.settings) == ("cached", first.settings)
    assert chosen(tiny(), batch, cache=tmp_path, steps_planned=10).source == "rule"  # what is short stays as it is
    monkeypatch.undo()
    assert chosen(tiny(layers=1), batch, cache=tmp_path).source == "measured"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"settings": {"attention": "auto"}}', '{"settings": 3}'])
def test_a_broken_cache_is_measured_anew(tiny, batch, tmp_path, content: str):
    chosen(tiny(), batch, cache=tmp_path)
    [file] = tmp_path.iterdir()
    file.write_text(content)
    assert chosen(tiny(), batch, cache=tmp_path).source == "measured"
    assert json.loads(file.read_text())["settings"].keys() == autotune.RULES.keys()


def test_a_resumed_run_takes_its_record(tiny, batch, tmp_path, monkeypatch):
    monkeypatch.setattr(autotune, "_seconds", lambda *given: pytest.fail("it measured"))
    recorded = {**autotune.RULES, "attention": "plain", "head": 0}
    model = tiny()
    found = chosen(model, batch, cache=tmp_path, recorded=recorded)
    assert (found.source, found.settings) == ("recorded", recorded)
    autotune.apply(found, model)
    assert model.attention_backend == "plain"
    assert model.head_chunk_entries == 0


def test_choices_change_the_last_digits_at_most(tiny, batch):
    losses = []
    for settings in ({"attention": "plain"}, {"attention": "fused"}, {"head": 0}, {"float32": "medium"}):
        model = tiny()
        autotune.apply(autotune.RULES | settings, model)
        losses.append(next_token(model, batch)["loss"].item())
    assert max(losses) - min(losses) < 1e-5 * losses[0]


def test_tries_end_when_their_time_is_spent(tiny, batch, monkeypatch):
    monkeypatch.setattr(autotune, "_seconds", lambda *given: 1e-15)
    found = chosen(tiny(), batch, steps_planned=LONG)
    assert all("not tried" in reason for reason in found.reasons[1:])


class Counting:
    """A source that counts."""

    def __init__(self) -> None:
        self.tokens = 0

    def __next__(self) -> int:
        self.tokens += 1
        return self.tokens

    def state_dict(self) -> dict:
        return {"tokens": self.tokens}

    def load_state_dict(self, state: dict) -> None:
        self.tokens = state["tokens"]


def test_looking_at_a_batch_does_not_move_the_source():
    source = Counting()
    assert autotune.peek(source) == 1
    assert next(source) == 1
