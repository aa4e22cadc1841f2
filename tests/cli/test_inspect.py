"""`ludus inspect`: what would be learned is shown, on a terminal, in a pipe and as a page; mistakes take one line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ludus.base.errors import ConfigError, DataError, LudusError
from ludus.cli.inspect import USAGE, context_of, inspect, main, tokenizer_of
from ludus.text.spans import Span, shown
from ludus.text.templates import NAMES


@pytest.fixture
def data(tmp_path) -> Path:
    rows = [
        {"instruction": "Say <b>hi</b>\x1b[31m", "input": "", "output": "Grüße, 🦉"},
        {"instruction": "Say hi", "input": "", "output": "Hallo <script>alert(1)</script>", "id": 7},
        {"instruction": "Say nothing", "input": "", "output": ""},
        {"instruction": "word " * 90, "input": "", "output": "Ja."},
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_everything_is_said_in_plain_lines(model, data, capsys):
    assert main([str(data), "--model", str(model)]) == 0
    said = capsys.readouterr().out
    assert "alpaca, 3 examples" in said
    assert "left out: 1 has an empty answer" in said
    assert "columns that are not read: id" in said
    assert "template ludus" in said
    assert "context 64 tokens (the model's); learned: all" in said
    assert "1 are left out: longer than data.context=64 tokens" in said
    assert "contract between training and serving: holds, checked on 3 conversations" in said
    assert "<|user|>Say hi<|end|><|assistant|>⟦Hallo <script>alert(1)</script><|end|>⟧" in said
    assert "\x1b" not in said
    assert f"{data}:1" in said


def test_the_page_escapes_what_the_data_says(model, data, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main([str(data), "--model", str(model), "--html", str(page), "--rows", "2", "--template", "chatml"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;im_" not in text.replace("&lt;|im_", "")
    assert "\x1b" not in text
    assert text.count("<article>") == 2
    shown_text = re.sub(r"<[^>]+>", "", text[text.index("<article>") :])
    assert "&lt;|im_start|&gt;user↵" in shown_text
    assert 'class="learned"' in text
    assert "Content-Security-Policy" in text
    assert "2 tokens are new to the model" in capsys.readouterr().out


def test_colours_tell_what_is_learned_and_contents_cannot_command_the_terminal():
    spans = [Span("<|user|>", 1, True, False), Span("a\x1b[2J\n", 2, False, False), Span("b", 3, False, True)]
    text = shown(spans, colour=True)
    assert "\x1b[2J" not in text
    assert "a␛[2J↵" in text
    assert re.search(r"\x1b\[48;5;\d+;38;5;231mb\x1b\[0m$", text)
    text = shown(spans, colour=False)
    assert text == "<|user|>a␛[2J\n⟦b⟧"


def test_the_tokenizer_is_found_in_a_model_a_run_or_a_file(model, tmp_path, data):
    assert tokenizer_of(str(model)) == model
    assert tokenizer_of(str(model / "tokenizer.json")) == model / "tokenizer.json"
    shutil.copytree(model, tmp_path / "run" / "sft" / "model")
    assert tokenizer_of(str(tmp_path / "run")) == tmp_path / "run" / "sft" / "model"
    assert context_of(model) == 64
    assert context_of(data) is None


def test_choices_reach_what_is_learned(model, data, tmp_path):
    options = {"model": str(model), "template": "auto", "format": "auto", "context": 300, "learn": "user"}
    found = inspect(str(data), {**options, "validation": str(data), "rows": 1})
    [(_, spans)] = found.examples
    assert "".join(span.text for span in spans if span.learned).startswith("Say <b>hi</b>")
    assert found.findings.counts["of the validation data ask what the training data asks"] == 3
    assert found.contract.errors == []


def test_a_broken_template_is_told_and_ends_with_one(model, data, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert main([str(data), "--model", str(broken)]) == 1
    said = capsys.readouterr().out
    assert "is BROKEN, checked on 3 conversations" in said
    assert "does not close the assistant's turn" in said


def test_data_of_which_nothing_can_be_learned_ends_with_one(model, data, capsys):
    assert main([str(data), "--model", str(model), "--context", "2"]) == 1
    assert "FATAL: none of 3 examples can be learned from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "DATA is missing"),
        (["{data}"], "--model is missing"),
        (["{data}", "--model", "{none}"], "no such|does not exist"),
        (["{none}.jsonl", "--model", "{model}"], "cannot be read"),
        (["{data}", "--model", "{model}", "--template", "chatlm"], "did you mean 'chatml'"),
        (["{data}", "--model", "{model}", "--format", "text"], "expected text or content for format text"),
        (["{data}", "--model", "{model}", "--learn", "asistant"], "did you mean 'assistant'"),
        (["{data}", "--model", "{model}", "--rows", "many"], "--rows expects a whole number"),
        (["{data}", "--model", "{model}", "--contxt", "9"], "did you mean --context"),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(model, data, tmp_path, argv, says):
    words = [word.format(data=data, model=model, none=tmp_path / "none") for word in argv]
    with pytest.raises(LudusError, match=says) as caught:
        main(words)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigError | DataError) or "none" in str(caught.value)


def test_the_help_names_every_template():
    [template] = [option for option in USAGE.options if option.name == "--template"]
    assert all(name in template.doc for name in NAMES)


def test_it_starts_without_torch(model, data):
    code = (
        "import sys; from ludus.cli.inspect import main; "
        f"main([{str(data)!r}, '--model', {str(model)!r}]); assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True)
