"""Every way of tuning a model that was brought, by the real command line: each ends, and what it leaves can be used."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ludus.adapters.files import recorded
from ludus.generation.engine import Sampling, generate
from ludus.generation.speaker import Speaker

RECIPE = """
name: tuned
stages: [sft, dpo, grpo]
threads: 1
precision: float32
model: {base: base}
data: {context: 96}
corpus: {path: other.txt}
exercises: {train: 17, held_out: 8, largest: 2, longest: 3, questions: false, held_out_share: 0.3}
sft: {data: chats.jsonl, steps: 4, rows: 4, optimizer: {kind: adamw, learning_rate: 0.01}}
dpo: {base: base, data: pairs.jsonl, steps: 2, pairs: 4, control: false, optimizer: {kind: adamw, learning_rate: 0.01}}
grpo:
  base: base
  steps: 2
  kl: 0.1
  turns: 1
  rollouts: {prompts: 4, group: 2, max_new_tokens: 4}
  optimizer: {kind: adamw, learning_rate: 0.01}
"""
STAGES = Path("runs/tuned")
FEW = "adapter.rank=4"
# What is tried: settings of the stage `sft`, by what they are about.
KINDS = {
    "full": ["adapter.kind=full"],
    "lora": ["adapter.kind=lora", FEW, "adapter.dropout=0.1"],
    "lora+": ["adapter.kind=lora+", FEW],
    "rslora": ["adapter.kind=lora", FEW, "adapter.rank_stabilised=true"],
    "dora": ["adapter.kind=dora", FEW],
    "vera": ["adapter.kind=vera", "adapter.rank=8"],
    "loha": ["adapter.kind=loha", FEW],
    "ia3": ["adapter.kind=ia3"],
    "prefix": ["adapter.kind=prefix", "adapter.tokens=3"],
    "projected prefix": ["adapter.kind=prefix", "adapter.tokens=3", "adapter.projection=8"],
    "prompt": ["adapter.kind=prompt", "adapter.tokens=3"],
    "prompt of words": ["adapter.kind=prompt", "adapter.tokens=3", "adapter.text=the cat"],
    "pissa": ["adapter.kind=lora", FEW, "adapter.initialise=pissa"],
    "loftq": ["adapter.kind=lora", FEW, "adapter.initialise=loftq"],
}
QUANTISED = {
    f"{kind} on {quantise}": [*KINDS[kind], f"quantise={quantise}"]
    for kind, quantise in [
        *((kind, "nf4") for kind in ("lora", "dora", "vera", "loha", "ia3", "prefix", "prompt", "pissa", "loftq")),
        *((kind, "int8") for kind in ("lora", "dora", "prefix", "pissa")),
    ]
}
OTHERWISE = {
    "lora and the vocabulary": [*KINDS["lora"], "adapter.also=[embed_tokens,lm_head]"],
    "lora and a norm": [*KINDS["lora"], "adapter.also=[norm]"],
    "lora in bfloat16": [*KINDS["lora"], "weights=bfloat16"],
    "lora on nf4 in bfloat16": [*KINDS["lora"], "weights=bfloat16", "quantise=nf4"],
    "lora with noise": [*KINDS["lora"], "noise=5"],
    "full with noise": ["noise=5"],
    "lora, a chat a row": [*KINDS["lora"], "packing=false"],
    "full, the last answer": ["learn=last"],
    "lora with added tokens": [*KINDS["lora"], "template=chatml"],
    "full with added tokens": ["template=chatml"],
    "lora on nf4 with added tokens": [*KINDS["lora"], "template=chatml", "quantise=nf4"],
    "lora unmerged": [*KINDS["lora"], "merge=false"],
    "lora beside other text": [*KINDS["lora"], "replay_path=other.txt", "replay=1"],
    "lora with 8-bit AdamW": [*KINDS["lora"], "adapter.also=[lm_head]", "optimizer.state=8bit"],
    "lora recomputing": [*KINDS["lora"], "recompute=true"],
}
CASES = KINDS | QUANTISED | OTHERWISE
VIRTUAL = ("prefix", "projected prefix", "prompt")


def talk(number: int, turns: int = 1) -> list[dict[str, str]]:
    draw = random.Random(number)
    words = [" ".join(draw.choices(["the", "cat", "sat", "on", "a", "mat"], k=3)) for _ in range(2 * turns)]
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(words)]


@pytest.fixture(scope="module")
def beginning(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a recipe, a base model and data to tune it on; only to be copied."""
    folder = tmp_path_factory.mktemp("beginning")
    shutil.copytree(tiny_run / "runs/tiny/pretrain/model", folder / "base")
    shutil.copy(tiny_run / "text.txt", folder / "other.txt")
    (folder / "tuned.yaml").write_text(RECIPE)
    chats = [{"messages": talk(number, 1 + number % 2)} for number in range(12)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(each) + "\n" for each in chats))
    pairs = [
        {"prompt": "the cat", "chosen": f"sat on {number}", "rejected": f"the mat {number}"} for number in range(6)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in pairs))
    return folder


@pytest.fixture
def tune(beginning: Path, tmp_path: Path, ludus: Callable) -> Callable[..., Path]:
    """Run one stage: `tune("sft", "noise=5")` returns its folder; what it said is in `said.txt` there."""
    shutil.copytree(beginning, tmp_path, dirs_exist_ok=True)

    def one(stage: str, *settings: str) -> Path:
        child = ludus(stage, "tuned.yaml", *(f"{stage}.{setting}" for setting in settings), folder=tmp_path)
        assert child.wait() == 0, child.err
        assert child.err == ""
        (tmp_path / STAGES / stage / "said.txt").write_text(child.out)
        return tmp_path / STAGES / stage

    return one


def records(stage: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]


@torch.no_grad()
def logits(speaker: Speaker) -> torch.Tensor:
    return speaker.model(torch.arange(24).view(2, 12))


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_tuned_and_what_is_left_can_be_used(case: str, tune, beginning):
    stage = tune("sft", *CASES[case])
    found = records(stage)
    assert [each["step"] for each in found] == [1, 2, 3, 4]
    assert all(math.isfinite(each["loss"]) and each["gradient_norm"] > 0 for each in found)
    tuned, base = Speaker.load(stage / "model"), Speaker.load(beginning / "base")
    assert tuned.stage == "sft"
    assert (logits(tuned)[..., :278] - logits(base)[..., :278]).abs().max() > 1e-4, "it learned nothing"
    (said,) = generate(tuned.model, [[1, 2, 3]], Sampling(4, tuned.stops, temperature=0))
    assert 1 <= len(said.tokens) <= 4
    if "full" in case:
        assert not (stage / "adapter").exists()
        return
    adapted = Speaker.load(stage / "adapter")
    if (stage / "model" / "adapter_config.json").exists():
        assert case.partition(" on ")[0] in VIRTUAL or "words" in case or "unmerged" in case
        assert not (stage / "merge.json").exists()
        assert torch.equal(logits(adapted), logits(tuned))
        return
    proof = json.loads((stage / "merge.json").read_text())
    assert proof["float32"]["relative_difference"] < 1e-4
    close = 0.05 if "bfloat16" in case else 1e-3
    torch.testing.assert_close(logits(adapted), logits(tuned), atol=close, rtol=close)
    assert recorded(stage / "adapter")["stage"] == "sft"


PREFERRED = ["full", "lora", "dora", "vera", "pissa", "loftq", "lora on nf4", "loftq on nf4", "pissa on int8"]


@pytest.mark.parametrize("case", PREFERRED)
def test_a_preference_begins_at_the_logarithm_of_two(case: str, tune):
    first, *_ = records(tune("dpo", *CASES[case]))
    assert first["preference_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("case", ["full", "dora", "loftq", "pissa on nf4"])
def test_a_policy_begins_where_its_reference_is(case: str, tune):
    first, *_ = records(tune("grpo", *CASES[case]))
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert first["ratio"] == pytest.approx(1, abs=1e-5)


def test_virtual_tokens_are_compared_with_the_model_without_them(tune):
    """They start as text drawn at random, which is nothing to stay near."""
    tune("dpo")
    stage = tune("dpo", *KINDS["prefix"])
    assert "reference log-probabilities: as computed before" in (stage / "said.txt").read_text()
    first, *_ = records(stage)
    assert 1e-5 < abs(first["preference_loss"] - math.log(2)) < 0.1
    assert 1e-5 < records(tune("grpo", *KINDS["prefix"]))[0]["kl"] < 0.1


def test_each_way_of_quantising_has_a_reference_of_its_own(tune):
    for case in ("lora on nf4", "loftq on nf4", "lora"):
        stage = tune("dpo", *CASES[case])
        assert "as computed before" not in (stage / "said.txt").read_text()
        assert records(stage)[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("case", ["lora unmerged", "prefix"])
def test_an_unmerged_adapter_goes_on_learning_on_its_own_base(case: str, tune, tmp_path, ludus):
    shutil.copytree(tune("sft", *CASES[case]), tmp_path / "first")
    dpo = tune("dpo", "base=first/model")
    assert records(dpo)[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-5)
    config = json.loads((dpo / "adapter" / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]).name == "base"
    assert (logits(Speaker.load(dpo / "adapter")) - logits(Speaker.load(tmp_path / "first"))).abs().max() > 1e-4
    assert records(tune("grpo", "base=first/model"))[0]["kl"] == pytest.approx(0, abs=1e-6)
    child = ludus("dpo", "tuned.yaml", "dpo.base=first/model", "dpo.adapter.kind=lora", folder=tmp_path)
    assert child.wait() == 2
    assert "the model to start from is an adapter on its base" in child.err
