"""The comparison after fine-tuning: held-out prompts alone, both models asked alike, whatever form they lie in."""

import json
import re

import pytest
import torch

from ludus.adapters import files
from ludus.adapters.apply import apply
from ludus.adapters.settings import LoraSettings
from ludus.base.errors import ConfigError, DataError
from ludus.cli.compare import main
from ludus.evaluation.compare_settings import CompareSettings
from ludus.evaluation.forgetting import bits_per_byte, general
from ludus.evaluation.held_out import Asked, is_held_out
from ludus.model import exchange
from ludus.model.resize import resize
from ludus.recipes import compare
from ludus.recipes.place import Place
from ludus.recipes.schema import Recipe
from ludus.runs.manifest import Manifest
from ludus.text.settings import TokenizerSettings
from ludus.text.templates import choose
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import train

EXAMPLES = [(f"What comes after {number}?", f"{number + 1}.") for number in range(80)]


@pytest.fixture(scope="module")
def brought(tiny, tmp_path_factory):
    """Save a base without a template, the same tuned with one, an adapter, data and text."""
    folder = tmp_path_factory.mktemp("brought")
    ours = train([f"{question} {answer}" for question, answer in EXAMPLES], TokenizerSettings(vocabulary=275))
    base = tiny(vocabulary=ours.vocabulary_size, context=160)
    exchange.save(base, folder / "base", ours, {})
    for name in ("chat_template.jinja", "sha256.json"):
        (folder / "base" / name).unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):  # special tokens that are nobody's template's
        file = folder / "base" / name
        content = json.loads(file.read_text().replace("<|", "<").replace("|>", ">"))
        file.write_text(json.dumps({key: value for key, value in content.items() if key != "chat_template"}))
    bare = Tokenizer.load(folder / "base")
    assert bare.template is None
    exchange.save(tiny(seed=5, vocabulary=ours.vocabulary_size, context=160), folder / "tuned", choose(bare), {})
    adapted = apply(base, LoraSettings(rank=2), seed=0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    files.save(adapted, folder / "adapter", base=str(folder / "base"), tokenizer=choose(bare))
    rows = [json.dumps({"prompt": question, "completion": answer}) + "\n" for question, answer in EXAMPLES]
    (folder / "data.jsonl").write_text("".join(rows))
    (folder / "text.txt").write_text("\n\n".join(f"general text, paragraph {number}. " * 90 for number in range(4)))
    return folder


def quick(folder) -> CompareSettings:
    return CompareSettings(prompts=3, max_new_tokens=6, bytes=600, text=str(folder / "text.txt"))


def side(folder, name):
    return compare.side(folder / name, name=name)


def test_the_stage_asks_what_training_has_not_seen(brought, tmp_path, capsys):
    sft = {"base": str(brought / "base"), "data": str(brought / "data.jsonl"), "validation_share": 0.1}
    recipe = Recipe.model_validate({"data": {"context": 160}, "sft": sft, "compare": quick(brought).model_dump()})
    place = Place(recipe, tmp_path)
    exchange.save(exchange.load(brought / "tuned"), place.model("sft"), Tokenizer.load(brought / "tuned"), {})
    assert {"base", "model", "data", "text"} == set(compare.STAGE.inputs(place))
    assert compare.STAGE.needs(place) == ["sft"]
    made = compare.STAGE.make(place, Manifest("compare", fingerprint=""))
    lines = [json.loads(line) for line in (made.outputs["comparison"] / "compare.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert all(is_held_out([{"role": "user", "content": line["prompt"]}], 0.1) for line in lines)
    assert all(line["reference"] and line["reference_mean_logp"]["after"] < 0 for line in lines)
    assert made.summary["forgetting"]["documents"] == 1
    assert (made.outputs["comparison"] / "compare.html").is_file()
    assert "3 prompts" in capsys.readouterr().out


def test_data_that_was_all_learned_is_asked_with_a_warning(brought, tmp_path, capsys):
    sft = {"base": str(brought / "base"), "data": str(brought / "data.jsonl"), "validation_share": 0}
    recipe = Recipe.model_validate({"data": {"context": 160}, "sft": sft, "compare": quick(brought).model_dump()})
    place = Place(recipe, tmp_path)
    exchange.save(exchange.load(brought / "tuned"), place.model("sft"), Tokenizer.load(brought / "tuned"), {})
    compare.make(place, Manifest("compare", fingerprint=""))
    assert "the model has been trained on these prompts" in capsys.readouterr().out


def test_a_base_without_a_template_is_asked_as_its_successor_is(brought):
    questions = [Asked(({"role": "user", "content": question},), answer) for question, answer in EXAMPLES[:3]]
    found = compare.compared(side(brought, "base"), side(brought, "tuned"), questions, quick(brought), context=160)
    assert found.facts["same_template"] is True
    assert [one.tokens for one in found.before.references] == [one.tokens for one in found.after.references]
    again = compare.compared(side(brought, "base"), side(brought, "base"), questions, quick(brought), context=160)
    assert again.before.general == found.before.general


def test_a_template_that_adds_tokens_gives_the_base_room_but_not_before_it_is_measured(brought, tmp_path, tiny):
    chatml = choose(Tokenizer.load(brought / "base"), "chatml")
    grown = resize(exchange.load(brought / "tuned"), chatml.vocabulary_size)
    exchange.save(grown, tmp_path / "grown", chatml, {})
    questions = [Asked(({"role": "user", "content": question},), answer) for question, answer in EXAMPLES[:2]]
    found = compare.compared(side(brought, "base"), side(tmp_path, "grown"), questions, quick(brought), context=160)
    assert chatml.vocabulary_size > exchange.load(brought / "base").shape.vocabulary
    base = exchange.load(brought / "base")
    texts = general(brought / "text.txt", 600)
    plain = bits_per_byte(base, Tokenizer.load(brought / "base"), texts, context=160, limit_bytes=None)
    assert found.before.general.bits == pytest.approx(plain.bits, rel=1e-6)


def test_answers_are_shorter_where_the_context_is(brought, capsys):
    questions = [Asked(({"role": "user", "content": question},), answer) for question, answer in EXAMPLES[:2]]
    settings = quick(brought).model_copy(update={"max_new_tokens": 128})
    found = compare.compared(side(brought, "tuned"), side(brought, "tuned"), questions, settings, context=160)
    assert found.before.general
    assert found.after.general
    assert re.search(r"answers of \d+ tokens at most, not 128: the context is 160", capsys.readouterr().out)


def test_an_adapter_is_compared_with_the_model_it_stands_on(brought, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ask.txt").write_text("What comes after 3?\n\nWhat comes after 4?\n")
    words = [str(brought / "base"), str(brought / "adapter"), "ask.txt", "--max-new-tokens", "5", "--seeds", "0,1"]
    assert main([*words, "--text", str(brought / "text.txt"), "--bytes", "9000", "--temperature", "0"]) == 0
    said = capsys.readouterr().out
    assert "2 prompts, 2 seed(s)" in said
    lines = [json.loads(line) for line in (tmp_path / "comparison" / "compare.jsonl").read_text().splitlines()]
    assert lines[0]["before"] == lines[2]["before"], "without a temperature the seed does not count"
    assert lines[0]["before"] != lines[0]["after"]
    assert "base and adapter" in (tmp_path / "comparison" / "compare.html").read_text()


def test_mistakes_are_said_in_a_line(brought, tmp_path):
    both = [str(brought / "base"), str(brought / "tuned")]
    with pytest.raises(ConfigError, match="--seeds expects whole numbers"):
        main([*both, "ask.txt", "--seeds", "a"])
    with pytest.raises(DataError, match="cannot be read as text"):
        main([*both, str(tmp_path / "missing.txt")])
    (tmp_path / "long.txt").write_text("word " * 900)
    with pytest.raises(DataError, match="leaves room for 20 tokens"):
        main([*both, str(tmp_path / "long.txt")])
