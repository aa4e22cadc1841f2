"""Models that ludus did not make go through its command line, and come out the same in transformers and PEFT.

One kind on each family here; `benchmarks/foreign.py` goes through them all.
"""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
PAIRS = [
    *(("llama2", "dora"), ("llama3", "lora-ends"), ("mistral", "vera"), ("qwen2", "lora"), ("qwen3", "prefix")),
    *(("qwen3", "lora-pissa"), ("gpt2", "lora+"), ("gpt2", "prompt"), ("gptj", "ia3"), ("gptj", "qlora")),
]

pytestmark = [pytest.mark.oracle, pytest.mark.run, pytest.mark.filterwarnings("ignore")]  # of other software


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the benchmark, whose every cell is such a passage."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("foreign")
    for name, value in module.QUIET.items():
        monkeypatch.setenv(name, value)
    return module


def fits(foreign: ModuleType, base, kind: str, folder: Path) -> None:
    found = foreign.cell(base, kind, folder)
    assert found.fits, found
    assert found.moved > 1e-3


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_a_model_is_tuned_merged_exported_and_is_the_same_elsewhere(foreign, tmp_path, family: str, kind: str):
    base = foreign.bases([family], tmp_path, None, None)[family]
    fits(foreign, base, kind, tmp_path / "tuned")


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_a_file_of_llama2c_is_tuned_and_is_the_same_elsewhere(foreign, tmp_path, kind: str):
    file = SHARED / "weights" / "stories260K.bin"
    if not file.exists():
        pytest.skip("stories260K.bin is not here")
    base = foreign.bases([], tmp_path, None, file)[foreign.LLAMA2C]
    fits(foreign, base, kind, tmp_path / "tuned")


@pytest.mark.parametrize("family", ["llama2", "gpt2"])
def test_a_real_tokenizer_goes_with_the_model(foreign, tmp_path, family: str):
    if not (SHARED / "tokenizers" / family).exists():
        pytest.skip(f"the tokenizer of {family} is not here")
    base = foreign.bases([family], tmp_path, SHARED / "tokenizers", None)[family]
    fits(foreign, base, "lora", tmp_path / "tuned")


def test_added_tokens_take_the_rows_that_padded_a_vocabulary(foreign, tmp_path, capsys):
    base = foreign.bases(["gptj"], tmp_path, None, None)["gptj"]
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(f'{{"prompt": "{number} and 1?", "completion": "{number + 1}"}}\n' for number in range(8)))
    words = ["sft", f"model={base.path}", f"data={data}", "sft.template=gemma", "sft.adapter.kind=lora", "sft.steps=2"]
    assert foreign.command([*words, "sft.rows=1", "threads=1", "--folder", str(tmp_path / "run")]) == 0
    assert "adds 3 tokens (<bos>, <start_of_turn>, <end_of_turn>), whose rows the model has" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "sft" / "model" / "config.json").read_text("utf-8"))
    assert config["vocab_size"] == json.loads((base.path / "config.json").read_text("utf-8"))["vocab_size"]
    assert len(config["eos_token_id"]) == 2
    assert foreign.same_chat(tmp_path / "run" / "sft" / "model")
