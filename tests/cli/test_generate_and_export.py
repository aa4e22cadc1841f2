"""Generate and export: text for scripts, and folders that transformers loads to the same logits."""

import json

import pytest
import torch

from ludus.cli.main import main
from ludus.generation.speaker import Speaker
from ludus.text.chat import render


def generate(capsys, *argv: str) -> str:
    assert main(["generate", *argv]) == 0
    return capsys.readouterr().out


def test_text_alone_goes_to_standard_output_and_is_the_same_each_time(model, capsys):
    argv = [str(model), "--prompt", "Grüße", "--max-new-tokens", "8"]
    first = generate(capsys, *argv)
    assert first.endswith("\n")
    assert generate(capsys, *argv) == first
    assert generate(capsys, *argv, "--seed", "1") != first


def test_json_says_what_was_drawn_and_how_it_ended(model, capsys):
    argv = [str(model), "--prompt", "Grüße", "--max-new-tokens", "8"]
    record = json.loads(generate(capsys, *argv, "--json"))
    assert record["prompt"] == "Grüße"
    assert record["finish"] in ("stop", "length")
    assert record["text"] + "\n" == generate(capsys, *argv)
    assert Speaker.load(model).tokenizer.decode(record["tokens"]) == record["text"]
    lines = generate(capsys, *argv, "--json", "--samples", "70").splitlines()
    assert len({json.loads(line)["text"] for line in lines}) > 10
    assert len(lines) == 70
    assert generate(capsys, *argv, "--json", "--samples", "1").splitlines() == [json.dumps(record)]


def test_the_prompt_may_come_from_standard_input(model, stdin, capsys):
    stdin("Grüße\n".encode())
    piped = generate(capsys, str(model), "--prompt", "-", "--max-new-tokens", "4")
    assert piped == generate(capsys, str(model), "--prompt", "Grüße", "--max-new-tokens", "4")
    stdin(b"\xff\xfe")
    assert main(["generate", str(model), "--prompt", "-"]) == 2
    assert "ludus: standard input is not UTF-8 text (byte 0); convert it first" in capsys.readouterr().err


def test_raw_text_goes_on_beyond_the_context_and_a_chat_ends_there(model, capsys):
    tokens = json.loads(generate(capsys, str(model), "--prompt", "x", "--max-new-tokens", "80", "--json"))["tokens"]
    assert len(tokens) <= 80
    assert main(["generate", str(model), "--prompt", "x", "--chat", "--max-new-tokens", "80", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["tokens"]) == 64 - 5
    assert err == "ludus: the context of 64 tokens has room for 59 more, not for 80\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--prompt is missing: give --prompt TEXT, or --prompt - to read standard input"),
        (["--prompt", "x", "--system", "y"], "--system is for a conversation; add --chat"),
        (["--prompt", "x", "--samples", "0"], "--samples expects a whole number, 1 or more, got '0'"),
    ],
)
def test_a_mistake_in_generate_is_one_line(model, argv, message, capsys):
    assert main(["generate", str(model), *argv]) == 2
    assert capsys.readouterr().err == f"ludus: {message}\n"


@pytest.mark.oracle
def test_transformers_loads_an_export_to_the_same_logits_tokens_and_conversation(model, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    target = tmp_path / "exported"
    assert main(["export", str(model), "--to", "hf", "--output", str(target)]) == 0
    ours = Speaker.load(model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(target).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    messages = [{"role": "user", "content": "Grüße aus Köln"}]
    rendered = render(ours.tokenizer, messages, generation_prompt=True).tokens
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(found) == rendered
    assert tokenizer("Grüße, 🦉", add_special_tokens=False).input_ids == ours.tokenizer.encode("Grüße, 🦉")
    row = torch.tensor([rendered])
    with torch.no_grad():
        torch.testing.assert_close(theirs(row).logits, ours.model(row), rtol=3e-5, atol=3e-5)
    lines = capsys.readouterr().out.rpartition("\n\n")[2]
    assert len(lines.splitlines()) == 3
    exec(lines, {})  # the lines that export tells a person to run
    assert capsys.readouterr().out.strip()


def test_an_export_never_overwrites_unasked_and_never_what_is_no_model(model, tmp_path, capsys):
    target = tmp_path / "there"
    target.mkdir()
    assert main(["export", str(model), "--output", str(target)]) == 0
    assert main(["export", str(model), "--output", str(target)]) == 2
    assert capsys.readouterr().err == (
        f"ludus: {target} already exists; give another --output, or --force to replace it\n"
    )
    assert main(["export", str(model), "--output", str(target), "--force"]) == 0
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    capsys.readouterr()
    assert main(["export", str(model), "--output", str(precious), "--force"]) == 2
    assert "holds other things than a model" in capsys.readouterr().err
    assert (precious / "thesis.txt").read_text() == "x"
    for output in (model, model / "inside", model.parent):
        assert main(["export", str(model), "--output", str(output), "--force"]) == 2
        assert "is the model itself, or around or inside it" in capsys.readouterr().err
    assert main(["export", str(model), "--to", "gguf"]) == 2
    assert capsys.readouterr().err == "ludus: --to gguf: known are hf\n"


def test_an_export_is_named_after_the_run_and_the_stage(finished, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(finished / "runs" / "little")]) == 0
    assert (tmp_path / "little-pretrain-hf" / "model.safetensors").is_file()
    assert "'<|bos|>' + \"Once upon a time\"" in capsys.readouterr().out
