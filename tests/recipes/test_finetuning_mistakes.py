"""Law 10 for fine-tuning: every mistake is one line that says what to do, and what was derived says from what."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.law

RECIPE = """
name: tuned
stages: [sft, dpo]
threads: 1
model: {base: base}
data: {context: 96}
sft: {data: chats.jsonl, steps: 2, optimizer: {kind: adamw}, adapter: {kind: lora}}
"""


@pytest.fixture
def folder(tiny_run: Path, tmp_path: Path) -> Path:
    """Return a folder with a recipe, a base model and conversations to tune it on."""
    shutil.copytree(tiny_run / "runs/tiny/pretrain/model", tmp_path / "base")
    (tmp_path / "tuned.yaml").write_text(RECIPE)
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    line = json.dumps({"messages": turns}) + "\n"
    (tmp_path / "chats.jsonl").write_text(line * 6)
    return tmp_path


def refused(child) -> str:
    assert child.wait() == 2, child.out + child.err
    assert child.err.startswith("ludus: ")
    assert child.err.count("\n") == 1, child.err
    assert "Traceback" not in child.out
    return child.err.removeprefix("ludus: ").removesuffix("\n")


SETTINGS = {
    "sft.adapter.rnak=4": r"^sft\.adapter\.rnak: unknown key .*; did you mean sft\.adapter\.rank\?$",
    "sft.adapter.kind=lorra": r"^sft\.adapter\.kind: expected one of none, full, .*; did you mean lora\?$",
    "sft.adapter={kind: full} sft.quantise=nf4": r"quantise=nf4 is for frozen weights, .*; set adapter\.kind=lora",
    "sft.adapter.initialise=loftq sft.quantise=int8": r"loftq makes up for nf4, and quantise=int8; set quantise=nf4",
    "sft.adapter={kind: lora, rank: 64, initialise: pissa}": r"^adapter rank 64 .* has; lower adapter\.rank$",
    "sft.adapter={kind: lora, also: [embed]}": r"^embed, .*; did you mean embed_tokens\?$",
    "sft.data=chatz.jsonl": r"^chatz\.jsonl does not exist; ",
    "sft.template=chatm": r"^unknown chat template 'chatm'; did you mean 'chatml'\?",
    "sft.learn=[system]": r"^none of 6 examples can be learned from: 6 without a token to learn",
    "data.context=8": r"^none of 6 examples can be learned from: 6 longer than data\.context=8 tokens",
    "model.base=bas": r"^bas .*did you mean base\?",
    "sft.replay_path=nowhere.txt": r"^nowhere\.txt does not exist; ",
    "sft.validation=nowhere.jsonl": r"^nowhere\.jsonl does not exist; ",
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_setting_that_cannot_be(settings: str, folder, ludus):
    given = re.split(r" (?=sft\.)", settings)
    line = refused(ludus("sft", "tuned.yaml", *given, folder=folder))
    assert re.search(SETTINGS[settings], line), line


def test_an_adapter_on_virtual_tokens(folder, ludus):
    child = ludus("sft", "tuned.yaml", "sft.adapter={kind: prefix, tokens: 3}", folder=folder)
    assert child.wait() == 0, child.err
    shutil.move(folder / "runs/tuned/sft/model", folder / "prefixed")
    line = refused(ludus("sft", "tuned.yaml", "name=other", "model=prefixed", "sft.adapter.kind=dora", folder=folder))
    assert re.search(r"is an adapter on its base, and one adapter at a time can learn; start from its base", line), line


def test_virtual_tokens_where_every_position_is_taken(folder, ludus):
    learned = ["model.family=gpt2", "model.depth=2", "model.width=32", "corpus.path=text.txt", "data.context=96"]
    (folder / "text.txt").write_text("the cat sat on the mat and saw the old red sea.\n" * 40)
    made = ["name=gpt2", "model.base=null", "pretrain.steps=1", "pretrain.rows=2", "tokenizer.kind=character"]
    child = ludus("pretrain", "tuned.yaml", *made, *learned, folder=folder)
    assert child.wait() == 0, child.err
    given = ["model.base=runs/gpt2", "sft.adapter={kind: prefix, tokens: 96}"]
    line = refused(ludus("sft", "tuned.yaml", *given, folder=folder))
    assert line.startswith("96 virtual tokens leave no room in the 96 positions that the model has learned; set ")


def test_the_tokenizer_of_another_model(folder, ludus, tiny_run):
    file = folder / "base" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = list(vocabulary)[40:42]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(tokenizer))
    (folder / "base" / "sha256.json").unlink()  # so that the file is not merely damaged
    line = refused(ludus("sft", "tuned.yaml", folder=folder))
    assert re.search(r"^base.* tokenizer", line), line
    assert re.search(r"^base was trained with tokenizer \w+, not with base .*the model would read noise", line), line
    assert line.count("; use the tokenizer that lies in base") == 1


def test_a_base_whose_config_is_damaged(folder, ludus):
    file = folder / "base" / "config.json"
    file.write_text(file.read_text()[:-40])
    assert re.search(r"config\.json is damaged", refused(ludus("sft", "tuned.yaml", folder=folder)))
    (folder / "base" / "sha256.json").unlink()
    assert re.search(r"config\.json", refused(ludus("sft", "tuned.yaml", folder=folder)))


def test_what_is_derived_for_an_adapter_says_from_what(folder, ludus: Callable):
    rates = {}
    for kind in ("full", "lora", "dora", "vera", "loha", "ia3", "prefix", "prompt"):
        child = ludus("sft", "tuned.yaml", f"sft.adapter={{kind: {kind}}}", "--print-config", folder=folder)
        assert child.wait() == 0, child.err
        shown = re.search(r"^\W*sft\.optimizer\.learning_rate: (\S+).*derived: (.*)$", child.out, re.MULTILINE)
        assert shown is not None, child.out
        rates[kind] = float(shown[1])
        assert re.search(r"^for 45\.1 k parameters: .{6}", shown[2]), shown[0]
    assert rates["full"] < rates["lora"] == rates["dora"] < rates["loha"] < rates["vera"] < rates["prefix"]
