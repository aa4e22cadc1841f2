"""Whatever a person gets wrong: one clear line, exit code 2, and nothing of the run lost or overwritten."""

import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ludus.runs.folder import hold

RUN = Path("runs/tiny")


def refused(child) -> str:
    """Return the one line a command ended with, by a mistake of its user."""
    code = child.wait()
    assert child.err.startswith("ludus: "), f"exit code {code}: {child.err}"
    assert code == 2
    assert child.err.endswith("\n")
    assert child.err.count("\n") == 1, child.err
    return child.err.removeprefix("ludus: ").removesuffix("\n")


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path, ludus: Callable):
    """Return a copy of the finished run in which every stage must be up to date at the end too."""
    shutil.copytree(tiny_run, tmp_path, dirs_exist_ok=True)
    yield tmp_path
    child = ludus("run", "tiny.yaml", folder=tmp_path)
    assert child.wait() == 0, child.err
    stages = [line for line in child.out.splitlines() if line.startswith("[") and "report" not in line]
    assert [line for line in stages if "up to date" not in line] == []
    assert len(stages) == 8


def conversation(answer: str = "Here I am.", role: str = "user") -> str:
    return json.dumps({"messages": [{"role": role, "content": "Where?"}, {"role": "assistant", "content": answer}]})


NOISE = random.Random(0).randbytes(3000)
TEXTS = {
    # name: (content, settings, what the line says)
    "no byte": (b"", "corpus.path=x.txt", r"x\.txt is empty \(0 bytes\)$"),
    "blank lines": (
        b"\n  \n\n" * 99,
        "corpus.path=x.txt",
        r"no text is left of the 1 documents read \(1 empty\); give",
    ),
    "too short": (
        b"Hello.",
        "corpus.path=x.txt",
        r"\(1 too short\); give more text, or lower corpus.minimum_characters",
    ),
    "binary": (b"\x7fELF" + NOISE, "corpus.path=x.txt", r"x\.txt is a binary file \(it holds NUL bytes\), not text$"),
    "latin-1": ("äöüß".encode("latin-1") * 99, "corpus.path=x.txt", r"x\.txt is not UTF-8 text: .*; convert it$"),
    "a picture": (
        NOISE,
        "corpus.path=x.png",
        r"x\.png is not of a supported kind \(\.txt, \.md, \.jsonl, \.json, \.parquet, \.zip\)$",
    ),
    "no JSON": (b'{"text": "a b c d e f g"}\nnot', "corpus.path=x.jsonl", r"x\.jsonl:2 is not JSON; each line must be"),
    "no text": (
        b'{"words": "a b c"}\n',
        "corpus.path=x.jsonl",
        r"x\.jsonl:1 has no field `text` .* \(it has: words; set corpus\.text_column=words for another\)$",
    ),
    "no Parquet": (NOISE, "corpus.path=x.parquet", r"x\.parquet is not a Parquet file that can be read: "),
    "no tokenizer": (b"{}", "tokenizer.path=x.json", r"x\.json is not a tokenizer that can be read: "),
    "nothing said": (b"", "sft.data=x.jsonl", r"x\.jsonl is empty; expected a JSON object on each line$"),
    "no bytes of text": (
        b"\xff\xfe\xfd",
        "sft.data=x.jsonl",
        r"x\.jsonl cannot be read as text .*; expected JSON Lines$",
    ),
    "half a line": (
        conversation().encode() + b'\n\n{"messages": [{',
        "sft.data=x.jsonl",
        r"x\.jsonl:3: not JSON; expected one object on each line$",
    ),
    "a list": (conversation().encode() + b"\n[]", "sft.data=x.jsonl", r"x\.jsonl:2: expected an object, got a list$"),
    "no messages": (
        b'{"words": "a"}',
        "sft.data=x.jsonl",
        r"x\.jsonl:1: .*words",
    ),
    "unknown role": (
        (conversation() + "\n" + conversation(role="usr")).encode(),
        "sft.data=x.jsonl",
        r"x\.jsonl:2: message 1 of 2: unknown role 'usr'; known are .*; did you mean 'user'\?$",
    ),
    "an empty answer": (
        conversation(" ").encode(),
        "sft.data=x.jsonl",
        r"holds nothing to learn from: 1 has an empty answer$",
    ),
    "all too long": (
        (conversation("long " * 99) + "\n" + conversation("so long " * 99)).encode(),
        "sft.data=x.jsonl",
        r"^none of 2 examples can be learned from: 2 longer than data\.context=160 tokens$",
    ),
    "no answers": (
        b'{"messages": [{"role": "user", "content": "Hello?"}]}',
        "sft.data=x.jsonl",
        r"holds nothing to learn from: 1 without an answer to learn$",
    ),
    "nothing rejected": (
        b'{"prompt": "a", "chosen": "b"}',
        "dpo.data=x.jsonl",
        r"x\.jsonl:1: a preference needs prompt, chosen and rejected; rejected is missing$",
    ),
    "preferences of numbers": (
        b'{"prompt": "a", "chosen": "b", "rejected": 7}',
        "dpo.data=x.jsonl",
        r"x\.jsonl:1: prompt and answer must be text or lists of messages$",
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_that_cannot_be_used(name, run, ludus):
    content, setting, says = TEXTS[name]
    (run / setting.split("=")[1]).write_bytes(content)
    verb = setting.split(".")[0]
    line = refused(ludus(verb, "tiny.yaml", setting, folder=run))
    assert re.search(says, line), line


SETTINGS = {
    "corpus.path=nowhere.txt": r"^nowhere\.txt does not exist; make it first or name another$",
    "tokenizer.path=nowhere": r"^nowhere does not exist; ",
    "tokenizer.compare=[nowhere.json]": r"^nowhere\.json does not exist; ",
    "sft.data=nowhere.jsonl": r"^nowhere\.jsonl does not exist; ",
    "sft.base=runs/tinny": r"^runs/tinny .*did you mean runs/tiny\?",
    "grpo.base=runs/tiny/corpus": r"^runs/tiny/corpus holds no model yet: no config\.json in it, ",
    "tokenizer={kind: bpe, vocabulary: 5000}": r"^the text supports a vocabulary of \d+ tokens, 5000 were",
    "model.heads=3": r"^model\.width=32 over model\.heads=3 is not an even whole number of channels a head; ",
    "sft.adapter={kind: lora, targets: [q_prj]}": r"^adapter target q_prj is no .*; did you mean q_proj\?$",
    "sft.adapter={kind: lora, targets: []}": r"^the adapter has no targets, so nothing could learn; name some of ",
    "sft.steps=many": r"^sft\.steps: expected a whole number, 1 or more, got 'many' \(from command line\)$",
    "sft.steps=0": r"^sft\.steps: .*1.*command line",
    "sft.stepps=3": r"^sft\.stepps: unknown key.*command line.*did you mean .*steps",
    "sft.optimizer={kind: adam}": r"^sft\.optimizer\.kind: .*adamw",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_cannot_be(setting, run, ludus):
    verb = setting.split(".")[0].split("=")[0].replace("model", "pretrain")
    line = refused(ludus(verb, "tiny.yaml", setting, folder=run))
    assert re.search(SETTINGS[setting], line), line


def test_mistakes_name_where_they_were_made(run, ludus):
    (run / "mine.yaml").write_text("extends: tiny.yaml\nsft:\n  stepps: 4\n")
    assert "mine.yaml:3" in refused(ludus("sft", "mine.yaml", folder=run))
    (run / "mine.yaml").write_text("extends: tiny.yaml\nsft: {steps: -4}\n")
    assert "mine.yaml:2" in refused(ludus("sft", "mine.yaml", folder=run))
    assert "LUDUS__SFT__STEPPS" in refused(ludus("sft", "tiny.yaml", folder=run, LUDUS__SFT__STEPPS="4"))
    assert "LUDUS__SFT__STEPS" in refused(ludus("sft", "tiny.yaml", folder=run, LUDUS__SFT__STEPS="four"))


def test_two_mistakes_are_two_lines(run, ludus):
    child = ludus("sft", "tiny.yaml", "sft.stepps=4", "grpo.kl=-1", folder=run)
    assert child.wait() == 2
    first, second = sorted(child.err.splitlines())
    assert "grpo.kl" in first
    assert "sft.stepps" in second


def test_a_model_with_other_tokens_than_the_corpus_that_is_replayed(run, ludus):
    other = ["name=other", "tokenizer.kind=bpe", "tokenizer.vocabulary=270", "pretrain.steps=1"]
    assert ludus("pretrain", "tiny.yaml", *other, folder=run).wait() == 0
    line = refused(ludus("sft", "tiny.yaml", "base=runs/other", "replay=2", folder=run))
    assert re.search(
        r"^sft\.base=runs/other has another tokenizer than .*; set sft\.replay=0, .*, or tokenizer\.path=", line
    )


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


BROKEN = {
    "a flipped bit": (lambda model: flip_a_bit(model / "model.safetensors"), r"model\.safetensors is damaged: "),
    "half of the weights": (lambda model: cut(model / "model.safetensors"), r"model\.safetensors is damaged: "),
    "no weights": (
        lambda model: (model / "model.safetensors").unlink(),
        r"has no model\.safetensors; save the model again$",
    ),
    "no tokenizer": (
        lambda model: (model / "tokenizer.json").unlink(),
        r"^no tokenizer at model; give a folder that holds a tokenizer\.json",
    ),
    "half a configuration": (lambda model: cut(model / "config.json"), r"config\.json is damaged: "),
    "another architecture": (
        lambda model: ((model / "config.json").write_text('{"model_type": "mamba"}'), (model / "sha256.json").unlink()),
        r"holds mamba; ludus reads ",
    ),
    "a configuration that is none": (
        lambda model: ((model / "config.json").write_text("[]"), (model / "sha256.json").unlink()),
        r"config\.json is no model's config: it is a list$",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_cannot_be_used(name, run, ludus):
    harm, says = BROKEN[name]
    shutil.copytree(run / RUN / "pretrain" / "model", run / "model")
    harm(run / "model")
    line = refused(ludus("sft", "tiny.yaml", "base=model", folder=run))
    assert re.search(says, line), line


def test_a_run_that_another_process_works_on(run, ludus):
    with hold(run / RUN):
        line = refused(ludus("run", "tiny.yaml", folder=run))
    assert line == f"runs/tiny is in use by process {os.getpid()}; wait for it or stop it"


def test_a_file_where_the_run_should_be(run, ludus):
    (run / "notes").write_text("mine")
    line = refused(ludus("run", "tiny.yaml", "--folder", "notes", folder=run))
    assert line.startswith("notes cannot be written: ")
    assert (run / "notes").read_text() == "mine"


def test_a_folder_that_may_not_be_written(run, ludus):
    closed = run / "closed"
    closed.mkdir(mode=0o555)
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(closed)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing is forbidden to root, and it cannot mount here")
    try:
        line = refused(ludus("run", "tiny.yaml", "--folder", "closed/run", folder=run))
    finally:
        subprocess.run(["umount", str(closed)], capture_output=True, check=False)
    assert line.startswith("closed/run cannot be written: ")


STORED = {
    "pretrain/manifest.json": r"runs/tiny/pretrain/manifest\.json is not valid JSON ",
    "run.json": r"runs/tiny/run\.json",
    "exercises/questions/train.jsonl": r"train\.jsonl does not hold exercises ",
    "corpus/documents/train-00000.parquet": r"train-00000\.parquet is not a shard of a corpus ",
}


@pytest.mark.parametrize("name", STORED)
def test_something_damaged_within_the_run(name, tiny_run, tmp_path, ludus):
    shutil.copytree(tiny_run, tmp_path, dirs_exist_ok=True)
    cut(tmp_path / RUN / name)
    for stage in ("tokenizer", "sft"):
        shutil.rmtree(tmp_path / RUN / stage)
    line = refused(ludus("run", "tiny.yaml", folder=tmp_path))
    assert re.search(STORED[name], line), line


@pytest.mark.parametrize("setting", ["sft.data=nowhere.jsonl", "grpo.base=runs/other", "tokenizer.path=nowhere"])
def test_what_is_missing_is_missed_before_the_work_that_comes_first(setting, tiny_run, tmp_path, ludus):
    shutil.copytree(tiny_run, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / RUN)
    line = refused(ludus("run", "tiny.yaml", setting, folder=tmp_path))
    assert re.search("does not exist|neither a path here nor", line), line
    assert [path.name for path in (tmp_path / RUN).iterdir() if path.is_dir()] == []
