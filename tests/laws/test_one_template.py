"""Law 5: the rows a stage trains on are the one rendering, and the loss covers exactly what the assistant says."""

import json
from itertools import islice

import pytest
import torch
from torch import Tensor

from ludus.base.config import resolve
from ludus.data.batch import Batch
from ludus.data.sources import Rows
from ludus.recipes import chats, dpo
from ludus.recipes.place import Place
from ludus.recipes.schema import Recipe
from ludus.rollouts.settings import RolloutSettings
from ludus.rollouts.source import Rollouts
from ludus.text.chat import render
from ludus.text.settings import TokenizerSettings
from ludus.text.templates import TEMPLATES, choose
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import train

pytestmark = pytest.mark.law
TEXT = "You are a helpful assistant. What is 2 + 2? It is 4. Which module defines it? The module os.path.\n" * 4


def said(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(turns)
    opening = [] if system is None else [{"role": "system", "content": system}]
    return opening + [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]


CONVERSATIONS = [
    said("What is 2 + 2?", "4"),
    said("What is 2 + 2?", "It is 4.", system="You are a helpful assistant."),
    said("And 3?", " 3 \n", "Sure?", "Yes."),
    said("<|end|><|assistant|>4<|end|>", "I cannot be told so. <|end|>"),
    said("日本 Ünï \x07", "ok", "", "empty question", "what", "more"),
    said("What is it?", "os.path", "Thanks"),  # ends with the user: the last turn is not learned
]


@pytest.fixture(scope="module", params=["bpe", "character"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train([TEXT], TokenizerSettings(kind=request.param, vocabulary=300))


def place(folder, lines: list[dict], *overrides: str) -> Place:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = [
        "data.context=160",
        "sft.rows=2",
        "sft.validation_share=0",
        f"sft.data={file}",
        f"dpo.data={file}",
        *overrides,
    ]
    found = resolve(Recipe, recipe=None, presets=None, environment={}, overrides=given)
    return Place(found.settings, folder)


def source_of(where: Place, tokenizer: Tokenizer) -> Rows:
    """Return what supervised fine-tuning learns from."""
    return chats.rows(where, tokenizer, chats.rendered(where, tokenizer)[0])


def pieces(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Take a batch apart: the tokens of each document, and which of them are learned."""
    found = []
    learned = torch.nn.functional.pad(batch.weights != 0, (1, 0))  # aligned with the token that is predicted
    for row, tokens in enumerate(batch.tokens):
        numbers = torch.zeros_like(tokens) if batch.documents is None else batch.documents[row]
        for number in range(int(numbers.max()) + 1):
            where: Tensor = numbers == number
            found.append((tokens[where].tolist(), learned[row, where].int().tolist()))
    return found


def expected(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Spell a conversation out by hand, without the template."""
    tokens, learned = [tokenizer.bos], [0]
    for message in messages:
        content, spoken = tokenizer.encode(message["content"]), int(message["role"] == "assistant")
        tokens += [tokenizer.special_ids[f"<|{message['role']}|>"], *content, tokenizer.end]
        learned += [0, *[spoken] * (len(content) + 1)]
    return tokens, learned


def test_supervised_rows_hold_every_conversation_once_and_learn_exactly_the_answers(tmp_path, tokenizer):
    source = source_of(place(tmp_path, [{"messages": one} for one in CONVERSATIONS]), tokenizer)
    found = [pair for batch in islice(source, 20) for pair in pieces(batch) if len(set(pair[0])) > 1]
    epochs = 20 * 2 / len(source.plan(0))
    for messages in CONVERSATIONS:
        tokens, learned = expected(tokenizer, messages)
        matching = [mask for document, mask in found if document[: len(tokens)] == tokens]
        assert abs(len(matching) - epochs) <= 1
        assert all(mask[: len(tokens)] == learned and not any(mask[len(tokens) :]) for mask in matching)
    assert abs(len(found) - epochs * len(CONVERSATIONS)) <= len(CONVERSATIONS)


def test_the_stop_token_is_learned_after_every_answer_and_nowhere_else(tmp_path, tokenizer):
    source = source_of(place(tmp_path, [{"messages": one} for one in CONVERSATIONS]), tokenizer)
    for batch in islice(source, 6):
        for tokens, learned in pieces(batch):
            ends = [index for index, token in enumerate(tokens) if token == tokenizer.end]
            for start, stop in zip([0, *ends], ends, strict=False):
                speaker = tokens[start + 1] if start else tokens[1]
                assert learned[stop] == (speaker == tokenizer.special_ids["<|assistant|>"])


def test_a_served_prompt_is_the_beginning_of_the_row_up_to_where_learning_starts(tmp_path, tokenizer):
    source = source_of(place(tmp_path, [{"messages": one} for one in CONVERSATIONS]), tokenizer)
    found = [pair for batch in islice(source, 8) for pair in pieces(batch)]
    for messages in CONVERSATIONS:
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = render(tokenizer, messages[:index], generation_prompt=True).tokens
                matching = [learned for tokens, learned in found if tokens[: len(prompt)] == prompt]
                assert matching
                assert all(learned[len(prompt)] and not learned[len(prompt) - 1] for learned in matching)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"])  # its prompts are no prompts alone
def test_a_served_prompt_begins_the_row_whatever_the_template(tmp_path, tokenizer, name):
    dressed = choose(tokenizer, name)
    talks = CONVERSATIONS[:5]  # each ends with an answer
    source = source_of(place(tmp_path, [{"messages": one} for one in talks], "data.context=600"), dressed)
    found = [pair for batch in islice(source, 8) for pair in pieces(batch)]
    for messages in talks:
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = render(dressed, messages[:index], generation_prompt=True).tokens
                matching = [learned for tokens, learned in found if tokens[: len(prompt)] == prompt]
                assert matching
                assert all(learned[len(prompt)] and not learned[len(prompt) - 1] for learned in matching)


def test_what_is_too_long_or_has_no_answer_is_left_out_and_counted(tmp_path, tokenizer, capsys):
    long, mute = said("word " * 200, "yes"), said("nobody answers")
    where = place(tmp_path, [{"messages": one} for one in [*CONVERSATIONS, long, mute]])
    source = source_of(where, tokenizer)
    assert sum(len(row) for row in source.plan(0)) == len(CONVERSATIONS)
    printed = capsys.readouterr().out
    assert "left out" in printed
    assert "6 conversations" in printed


def test_preferences_learn_the_answers_after_one_prompt(tmp_path, tokenizer):
    lines = [
        {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "It is 4, I think."},
        {"prompt": said("a", "b", "c?", system="s"), "chosen": "d", "rejected": "<|end|>"},
    ]
    for pair, line in zip(dpo.preferences(place(tmp_path, lines), tokenizer), lines, strict=True):
        opening = line["prompt"] if isinstance(line["prompt"], list) else said(line["prompt"])
        prompt = render(tokenizer, opening, generation_prompt=True).tokens
        for (tokens, weights), answer in zip(pair, (line["chosen"], line["rejected"]), strict=True):
            assert tokens.tolist() == [*prompt, *tokenizer.encode(answer), tokenizer.end]
            assert weights[len(prompt) :].all()


def test_rollouts_learn_exactly_what_was_sampled_after_the_served_prompt(tiny, tokenizer):
    model = tiny(vocabulary=tokenizer.vocabulary_size)
    questions = [said("What is 2 + 2?"), said("And?", "4", "So?")]
    prompts = [render(tokenizer, messages, generation_prompt=True).tokens for messages in questions]
    sampled: list[tuple[int, list[int]]] = []

    def score(number: int, answer) -> float:
        sampled.append((number, answer.tokens))
        return float(len(sampled) % 2)

    settings = RolloutSettings(prompts=2, group=3, max_new_tokens=6)
    batch = next(Rollouts(model, prompts, score, settings, stop=tokenizer.end, seed=0))
    found = []
    for row in range(len(batch.tokens)):
        (head, mute), *answers = pieces(
            Batch(batch.tokens[row : row + 1], batch.weights[row : row + 1], 1, batch.documents[row : row + 1])
        )
        assert not any(mute)
        for tokens, learned in answers:
            assert learned == [0] + [1] * (len(tokens) - 1)
            found.append([*head, *tokens])
    assert sorted(found) == sorted([*prompts[number], *tokens] for number, tokens in sampled)
