"""The conversations of a recipe: parted by prompt, looked through, rendered, one row each where they are not packed."""

import json
from pathlib import Path

import numpy as np
import pytest

from ludus.base.config import resolve
from ludus.recipes import chats
from ludus.recipes.chats import conversations
from ludus.recipes.place import Place
from ludus.recipes.schema import Recipe
from ludus.recipes.training import brought_files, in_epochs
from ludus.text.settings import TokenizerSettings
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import prepare


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return prepare(["Say so so and so, once more."] * 20, TokenizerSettings(vocabulary=270))


def place(folder: Path, *overrides: str) -> Place:
    resolved = resolve(Recipe, recipe=None, presets=folder, environment={}, overrides=["sft.base=x", *overrides])
    return Place(resolved.settings, folder, resolved.origins)


def write(folder: Path, count: int = 60) -> Path:
    file = folder / "talks.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}"},
                {"role": "assistant", "content": "so " * (n % 7) + f"{n}"},
            ]
        }
        for n in range(count)
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def test_no_prompt_is_on_both_sides(tmp_path):
    here = place(tmp_path, f"sft.data={write(tmp_path)}", "sft.validation_share=0.3")
    train, held_out = conversations(here)
    asked = [{chat.messages[0]["content"] for chat in side} for side in (train, held_out)]
    assert len(train) + len(held_out) == 60
    assert len(held_out) > 6
    assert not asked[0] & asked[1]


def test_too_few_examples_are_all_learned(tmp_path, capsys):
    here = place(tmp_path, f"sft.data={write(tmp_path, 1)}", "sft.validation_share=0.99")
    train, held_out = conversations(here)
    assert (len(train), len(held_out)) == (1, 0)
    assert "no validation" in capsys.readouterr().out


def test_texts_without_turns_are_parted_too(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"A plain text, number {n}."}) for n in range(50)))
    train, held_out = conversations(place(tmp_path, f"sft.data={file}", "sft.validation_share=0.3"))
    assert len(train) + len(held_out) == 50
    assert held_out


def test_what_is_learned_is_shown_before_training(tmp_path, tokenizer, capsys):
    chats.rendered(place(tmp_path, f"sft.data={write(tmp_path)}"), tokenizer)
    shown = capsys.readouterr().out
    assert "what the model will see, and ⟦learn⟧" in shown
    assert "⟦0" in shown


@pytest.mark.parametrize("packing", [True, False])
def test_packed_or_not_the_same_tokens_are_learned(tmp_path, tokenizer, packing: bool):
    here = place(tmp_path, f"sft.data={write(tmp_path)}", f"sft.packing={str(packing).lower()}", "sft.rows=4")
    found, _ = chats.rendered(here, tokenizer)
    source = chats.rows(here, tokenizer, found)
    batches = []
    while source.epoch == 0:
        batches.append(next(source))
    learned = sum(float(batch.weights.sum()) for batch in batches)
    least = sum(float(weights[1:].sum()) for _, weights in found.examples)
    assert learned >= least  # an epoch ends within a batch
    assert (batches[0].documents is not None) == packing
    if not packing:
        assert batches[0].tokens.shape[1] < here.recipe.data.context


def test_noise_is_told_how_long_each_conversation_is(tmp_path, tokenizer):
    here = place(tmp_path, f"sft.data={write(tmp_path)}", "sft.packing=false", "sft.rows=4", "sft.noise=5")
    found, _ = chats.rendered(here, tokenizer)
    batch = next(chats.rows(here, tokenizer, found))
    assert batch.documents is not None
    assert sorted((batch.documents == 0).sum(dim=1).tolist()) != [batch.tokens.shape[1]] * 4


def test_epochs_become_steps_and_what_derives_from_them_follows(tmp_path, tokenizer):
    here = place(tmp_path, f"sft.data={write(tmp_path)}", "sft.epochs=2", "sft.rows=2", "sft.validate_every=3")
    found, _ = chats.rendered(here, tokenizer)
    source = chats.rows(here, tokenizer, found)
    settings = in_epochs(here, here.recipe.sft, source)
    assert settings.steps == round(2 * source.outlook()["rows"] / 2)
    assert settings.validate_every == 3
    assert settings.checkpoint_every == max(1, settings.steps // 10)


def test_a_data_set_of_the_hub_is_no_file(tmp_path):
    file = write(tmp_path)
    assert brought_files(str(file)) == {"data": file}
    assert brought_files("owner/name") == {}
    assert sorted(brought_files([str(file), str(file)])) == ["data 1", "data 2"]


def test_weights_of_examples_reach_the_batch(tmp_path, tokenizer):
    file = tmp_path / "weighed.jsonl"
    rows = [{"prompt": "a", "completion": "b", "weight": 0.5}, {"prompt": "c", "completion": "d"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    found, _ = chats.rendered(place(tmp_path, f"sft.data={file}", "sft.validation_share=0"), tokenizer)
    assert sorted({float(weight) for _, weights in found.examples for weight in np.unique(weights)}) == [0.0, 0.5, 1.0]
