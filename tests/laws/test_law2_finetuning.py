"""Law 2 for what fine-tuning adds: killed in the middle and begun again, every adapter ends with the same bytes."""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from law2_runs import stream

from ludus.base.files import sha256_file
from ludus.learning import checkpoints

pytestmark = pytest.mark.law

STEPS, EVERY = 24, 3
RECIPE = f"""
name: tuned
stages: [sft]
threads: 1
precision: float32
model: {{base: base}}
data: {{context: 96}}
sft:
  data: chats.jsonl
  steps: {STEPS}
  rows: 4
  checkpoint_every: {EVERY}
  sample_every: 9
  optimizer: {{kind: adamw, learning_rate: 0.01}}
  adapter: {{kind: lora, rank: 4}}
"""
STAGE = Path("runs/tuned/sft")
# Settings of the stage, beyond those of the recipe, by what of them a checkpoint or the way to it must bring back.
CASES = {
    "lora with dropout": ["adapter.dropout=0.2"],
    "lora on nf4": ["quantise=nf4", "adapter.dropout=0.2"],
    "dora on int8": ["quantise=int8", "adapter.kind=dora"],
    "vera": ["adapter={kind: vera, rank: 8}"],
    "prefix": ["adapter={kind: prefix, tokens: 3, projection: 8}"],
    "prompt": ["adapter={kind: prompt, tokens: 3}"],
    "noise": ["noise=5"],
    "pissa": ["adapter.initialise=pissa"],
    "loftq": ["adapter.initialise=loftq", "quantise=nf4"],
    "8-bit AdamW": ["adapter.also=[embed_tokens]", "optimizer.state=8bit"],
    "added tokens": ["template=chatml"],
    "a chat a row": ["packing=false"],
    "other text": ["replay_path=other.txt", "replay=1"],
    "the best weights": ["stopping={best: true, patience: 2}", "validate_every=2", "optimizer.learning_rate=0.2"],
}


def chat(number: int) -> str:
    draw = random.Random(number)
    asked, told = (" ".join(draw.choices(["the", "cat", "sat", "on", "a", "mat"], k=3)) for _ in range(2))
    return json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]})


@pytest.fixture
def folder(tiny_run: Path, tmp_path: Path) -> Path:
    """Return a folder with a recipe, a base model and conversations to tune it on."""
    shutil.copytree(tiny_run / "runs/tiny/pretrain/model", tmp_path / "base")
    shutil.copy(tiny_run / "text.txt", tmp_path / "other.txt")
    (tmp_path / "tuned.yaml").write_text(RECIPE)
    (tmp_path / "chats.jsonl").write_text("".join(f"{chat(number)}\n" for number in range(24)))
    return tmp_path


def outcome(stage: Path) -> tuple[Any, ...]:
    manifest = json.loads((stage / "manifest.json").read_text())
    left = {name: manifest[name] for name in ("status", "fingerprint", "tokens", "summary")}
    weights = sorted(path for part in ("adapter", "model") for path in (stage / part).glob("*.safetensors"))
    return stream(stage), left, {str(path.relative_to(stage)): sha256_file(path) for path in weights}


def killed(ludus: Callable, folder: Path, settings: list[str], steps: int) -> int:
    """Kill the stage once it has logged that many steps, and return the step of its newest checkpoint."""
    log = folder / STAGE / "metrics.jsonl"
    for _ in range(9):
        child = ludus("sft", "tuned.yaml", *settings, folder=folder)
        while not (folder / STAGE / "model").exists() and not (log.exists() and log.read_bytes().count(b"\n") >= steps):
            time.sleep(0.001)
        child.kill()
        if child.wait() == -9:
            newest = checkpoints.latest(folder / STAGE / "checkpoints")
            assert newest is not None, "it was killed before it had saved anything"
            return checkpoints.step_of(newest)
        shutil.rmtree(folder / STAGE)  # it was done before it was killed
    raise AssertionError("it was always done before it was killed")


@pytest.mark.parametrize("case", CASES)
def test_a_tuning_killed_in_the_middle_ends_as_if_it_never_was(case: str, folder, ludus):
    settings = [f"sft.{setting}" for setting in CASES[case]]
    whole = ludus("sft", "tuned.yaml", *settings, folder=folder)
    assert whole.wait() == 0, whole.err
    expected = outcome(folder / STAGE)
    shutil.rmtree(folder / STAGE)
    last = len(expected[0][0])
    if case == "the best weights":
        assert f"stopped early after step {last}: " in whole.out
        assert "the weights are those of step" in whole.out
    steps = 0
    for wanted in (EVERY + 4, last - 2):  # two writes apart, since one may be under way
        steps = killed(ludus, folder, settings, wanted)
        assert wanted - 2 * EVERY <= steps <= last, "no progress to go on from"
    again = ludus("sft", "tuned.yaml", *settings, folder=folder)
    assert again.wait() == 0, again.err
    assert f"resuming after step {steps} of {STEPS}" in again.out
    assert outcome(folder / STAGE) == expected
