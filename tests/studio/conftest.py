"""A folder of runs with one tiny model that never stops by itself, and names that would like to be markup."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="session")
def runs(tiny: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run that is complete, one that was stopped, and one whose every name is hostile."""
    import torch

    from ludus.model import exchange
    from ludus.text.settings import TokenizerSettings
    from ludus.text.train import train

    folder = tmp_path_factory.mktemp("studio") / "runs"
    tokenizer = train(["Grüße aus Köln, 🦉 und mehr. " * 9], TokenizerSettings(vocabulary=270))
    talker = tiny(vocabulary=tokenizer.vocabulary_size, context=64)
    with torch.no_grad():
        talker.lm_head.weight.mul_(10)
        talker.lm_head.weight[list(tokenizer.special_ids.values())] = 0
    for stage in ("pretrain", "sft"):
        exchange.save(talker, folder / "good" / stage / "model", tokenizer, {"stage": stage})
    score = {"stage": "sft", "accuracy": 0.625, "low": 0.5, "high": 0.75}
    write(folder / "good" / "evaluation" / "results.json", {"stages": [score]})
    write_run(folder / "good", "good", {"pretrain": "complete", "sft": "complete"}, started="2026-02-01T00:00:00+00:00")
    (folder / "good" / "report.html").write_text("<!doctype html><title>the report</title>")
    write_run(folder / "half", "half", {"pretrain": "running"}, started="2026-01-01T00:00:00+00:00")
    (folder / "half" / "pretrain" / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    write_run(folder / HOSTILE, f"{HOSTILE}{HOSTILE}", {"corpus": "complete"}, started=HOSTILE)
    write_run(folder / "big-sweep" / "depth=2", "big", {"pretrain": "complete"})
    (folder / "big-sweep" / "comparison.html").write_text("<!doctype html><title>the comparison</title>")
    (folder / "torn").mkdir()
    (folder / "torn" / "run.json").write_text('{"recipe": ')
    return folder


def write_run(folder: Path, recipe: str, stages: dict[str, str], started: str = "") -> None:
    """Write what the studio reads of a run."""
    write(folder / "run.json", {"recipe": recipe, "stages": list(stages)})
    for stage, status in stages.items():
        content = {"stage": stage, "status": status, "started": started, "settings": {stage: {"steps": 40}}}
        write(folder / stage / "manifest.json", content)


def write(path: Path, content: object) -> None:
    """Write JSON, with the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
