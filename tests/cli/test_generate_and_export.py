"""Generate and export: text for scripts, and folders that transformers loads to the same logits."""

import json
from pathlib import Path

import pytest
import torch

from ludus.adapters import files
from ludus.adapters.apply import apply
from ludus.adapters.settings import LoraSettings, PromptSettings
from ludus.cli.main import main
from ludus.generation.speaker import Speaker
from ludus.model import exchange
from ludus.text.chat import render

STORIES = Path(__file__).parents[3] / "shared" / "data" / "weights" / "stories260K.bin"  # where it is


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


def test_an_adapter_speaks_on_its_base_and_is_refused_as_an_export(model, tmp_path, capsys):
    adapter = tmp_path / "tuned"
    files.save(apply(exchange.load(model), LoraSettings(rank=2), seed=0), adapter, base=str(model))
    argv = ["--prompt", "Grüße", "--max-new-tokens", "8"]
    plain = generate(capsys, str(model), *argv)
    assert generate(capsys, str(adapter), *argv) == plain  # an adapter that has not learned changes nothing
    assert generate(capsys, str(model), "--adapter", str(adapter), *argv) == plain
    assert main(["generate", str(model), *argv, "--adapter", str(adapter), "--adapter", f"x={adapter}"]) == 2
    assert "one text has one speaker" in capsys.readouterr().err
    assert main(["export", str(adapter), "--output", str(tmp_path / "out")]) == 2
    assert f"fold it into its base with `ludus merge {adapter}`" in capsys.readouterr().err
    files.save(apply(exchange.load(model), PromptSettings(tokens=2), seed=0), adapter, base=str(model))
    assert main(["export", str(adapter), "--output", str(tmp_path / "out")]) == 2
    assert "it cannot be merged, and PEFT loads the folder as it is" in capsys.readouterr().err


def test_an_export_keeps_the_type_of_the_weights_or_takes_another_and_is_never_quantised(model, tmp_path, capsys):
    def dtype_of(folder):
        return exchange.load(folder, None).embed_tokens.weight.dtype

    narrow, wide = tmp_path / "narrow", tmp_path / "wide"
    assert main(["export", str(model), "--dtype", "bfloat16", "--output", str(narrow)]) == 0
    assert dtype_of(narrow) == torch.bfloat16
    for more, expected in [([], torch.bfloat16), (["--dtype", "float32", "--force"], torch.float32)]:
        assert main(["export", str(narrow), "--output", str(wide), *more]) == 0
        assert dtype_of(wide) == expected
    capsys.readouterr()
    assert main(["export", str(model), "--quantise", "nf4"]) == 2
    assert "--quantise: an export holds whole weights" in capsys.readouterr().err


@pytest.mark.skipif(not STORIES.is_file(), reason="the weights of stories260K are not here")
def test_a_llama2_c_file_goes_on_with_its_story_piece_by_piece(capsys):
    story = generate(capsys, str(STORIES), "--prompt", "", "--temperature", "0", "--max-new-tokens", "200")
    assert story.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
    assert story.endswith("\nLily didn't want to help her mom, so she\n")
    argv = [str(STORIES), "--prompt", "", "--temperature", "0", "--max-new-tokens", "200", "--samples", "2"]
    assert generate(capsys, *argv) == 2 * story  # drawn at once
