"""One tiny model on disk that never stops by itself, and one real run, both made once."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = """
name: little
stages: [corpus, tokenizer, pretrain, report]
threads: 1
corpus: {path: text.txt, minimum_characters: 1, near_duplicates: false, validation_fraction: 0.2}
tokenizer: {kind: character}
data: {context: 16}
model: {depth: 1, width: 16, heads: 2}
pretrain: {steps: 3, rows: 2, validation_rows: 2, prompts: [the], sample_tokens: 4}
"""


@pytest.fixture(scope="session")
def little() -> str:
    """Return a recipe that takes a second."""
    return RECIPE


@pytest.fixture(scope="session")
def model(tiny: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny model whose likeliest token is never a special one."""
    import torch

    from ludus.model import exchange
    from ludus.text.settings import TokenizerSettings
    from ludus.text.train import train

    tokenizer = train(["Grüße aus Köln, 🦉 und mehr. " * 9], TokenizerSettings(vocabulary=270))
    talker = tiny(vocabulary=tokenizer.vocabulary_size, context=64)
    with torch.no_grad():
        talker.lm_head.weight.mul_(10)
        talker.lm_head.weight[list(tokenizer.special_ids.values())] = 0
    folder = tmp_path_factory.mktemp("models") / "talker"
    exchange.save(talker, folder, tokenizer, {"stage": "sft"})
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a very small recipe; return the folder it was run in, with little.yaml, text.txt and runs/little."""
    from ludus.cli.main import main

    here = tmp_path_factory.mktemp("finished")
    (here / "little.yaml").write_text(RECIPE)
    (here / "text.txt").write_text("\n\n".join(f"the number {n} comes after {n - 1}." for n in range(1, 120)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(sys, "argv", ["ludus", "run", "little.yaml"])
        assert main(["run", "little.yaml"]) == 0
    return here


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Let standard input be a pipe with the given bytes in it."""

    def put(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))

    return put
