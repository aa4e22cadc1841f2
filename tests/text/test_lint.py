"""What is wrong with data is counted, and what makes it useless is refused with the reason."""

import random
import time

import numpy as np
import pytest

from ludus.base.errors import DataError
from ludus.text import examples, lint
from ludus.text.chat import render
from ludus.text.formats import Chat
from ludus.text.settings import TokenizerSettings
from ludus.text.templates import choose
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import train

TEXT = "You are a helpful assistant. What is 2 + 2? It is 4.\nWhat is the capital of France? Paris, of course.\n" * 4


def said(*turns: str, roles: str = "ua") -> list[dict[str, str]]:
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": names[roles[index % len(roles)]], "content": turn} for index, turn in enumerate(turns)]


def chats(*talks: list[dict[str, str]]) -> list[Chat]:
    return [Chat(messages, place=f"x:{number}") for number, messages in enumerate(talks, 1)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train([TEXT], TokenizerSettings(vocabulary=300))


def troubles(tokenizer, data, **more) -> dict[str, tuple[int, str]]:
    found = lint.examine(data, tokenizer, context=200, **more)
    return {trouble: (count, found.places[trouble]) for trouble, count in found.counts.items()}


def test_good_data_has_no_trouble(tokenizer):
    found = lint.examine(chats(said("a?", "b"), said("c?", "d", "e?", "f")), tokenizer, context=200)
    assert not found.counts
    assert not found.fatal
    assert (found.conversations, found.turns) == (2, 6)
    assert "2 examples, 6 messages" in found.lines[0]


@pytest.mark.parametrize(
    ("talk", "says"),
    [
        (said("a", "b", "c", "d", roles="uasa"), "have a system message that is not the first"),
        (said("a", "b", roles="au"), "begin with the assistant"),
        (said("a", "b", "c", roles="uua"), "have two turns of one role in a row"),
        (said("a", "b", "c"), "end without an answer"),
        (said("", "b"), "hold an empty turn"),
        (said("say <|im_start|>", "b"), "hold what looks like a special token"),
        (said("say <|end|>", "b"), "hold what looks like a special token"),
        (said("x\n\n### Response:\n", "b"), "hold what looks like a special token"),
    ],
)
def test_each_trouble_is_counted_with_its_place(tokenizer, talk, says):
    data = chats(said("fine?", "yes"), talk, said("good?", "yes"))
    found = {trouble: place for trouble, place in troubles(tokenizer, data).items() if trouble.startswith(says)}
    assert list(found.values()) == [(1, "x:2")]


def test_copies_and_other_answers_and_leaks_are_told_apart(tokenizer):
    data = chats(
        said("a?", "b"), said("a? ", "b"), said("a?", "c"), said("d?", "e"), said("be", "a?", "b", roles="sua")
    )
    found = troubles(tokenizer, data, validation=chats(said("d?", "other"), said("z?", "y")))
    assert found == {
        "are copies of one before": (1, "x:2"),
        "ask what was asked before, with another answer": (1, "x:3"),
        "of the validation data ask what the training data asks": (1, "x:1"),
    }


def test_what_is_too_long_is_left_out_and_told_apart_from_what_would_be_all_masked(tokenizer):
    data = chats(said("a?", "b"), said("word " * 300, "yes"), said("a?", "word " * 300))
    found = troubles(tokenizer, data)
    assert found["are left out: longer than data.context=200 tokens"] == (1, "x:3")
    assert found["are left out: longer than data.context=200 tokens, nothing learned within them"] == (1, "x:2")


def test_data_of_which_nothing_can_be_learned_is_refused_with_counts(tokenizer):
    data = chats(said("word " * 300, "yes"), said("a?", "b"))
    data[1].messages[1] = {**data[1].messages[1], "weight": 0}
    found = lint.examine(data, tokenizer, context=200)
    says = (
        "none of 2 examples can be learned from: 1 longer than data.context=200 tokens, nothing learned within them, "
    )
    assert found.fatal == [says + "1 without a token to learn"]
    with pytest.raises(DataError, match="none of 2 examples"):
        found.uphold()
    assert lint.examine([], tokenizer, context=9).fatal == ["there are no examples"]


def test_the_counts_are_those_of_training(tokenizer):
    data = [*chats(said("a?", "b"), said("What is 2 + 2?", "It is 4.", "Sure?", "Yes.")), Chat([], text=TEXT)]
    found = lint.examine(data, tokenizer, context=50)
    rendered = [render(tokenizer, chat.messages) for chat in data[:2]]
    text = len(tokenizer.encode(TEXT)) + 2
    assert found.lengths.tolist() == [*(len(one.tokens) for one in rendered), text]
    assert found.learned == sum(sum(one.mask) for one in rendered) + text - 1
    assert sum(count for _, _, count in found.bins) == 3
    assert len(found.histogram) == len(found.bins)
    assert "longer than the context" in found.histogram[-1]
    built = examples.build(tokenizer, data, context=50)
    assert sum(int(weights[1:].sum()) for _, weights in built.examples) == found.learned


def test_a_second_beginning_is_seen(tokenizer):
    double = tokenizer.with_template("{{ bos_token }}" + str(tokenizer.template))
    assert troubles(double, chats(said("a?", "b")))["have <|bos|> twice"] == (1, "x:1")


@pytest.mark.parametrize("template", ["own", "alpaca", "llama3"])
def test_examples_are_the_rendering_with_the_weight_of_their_row(tokenizer, template):
    dressed = choose(tokenizer, template)
    data = [Chat(said("a? ", " b"), weight=0.5), Chat(said("c?", "d", "e?", "f"))]
    built = examples.build(dressed, data, context=200, learn="last")
    for one, chat in zip(built.examples, data, strict=True):
        wanted = render(dressed, chat.messages, learn="last")
        assert one[0].tolist() == wanted.tokens
        assert one[1].tolist() == [bit * chat.weight for bit in wanted.mask]
        tokens, weights = examples.example(dressed, chat, "last")
        assert np.array_equal(tokens, one[0])
        assert np.array_equal(weights, one[1])
    assert (built.examples[0][0].dtype, built.examples[0][1].dtype) == (np.int64, np.float32)


def test_a_long_text_is_cut_so_that_every_token_but_the_first_is_learned_once(tokenizer):
    built = examples.build(tokenizer, [Chat([], text=TEXT, weight=2.0), *chats(said("a?", "b" * 300))], context=16)
    assert built.left_out == {"longer than data.context=16 tokens": 1}
    assert set(built.origins) == {0}
    whole = [tokenizer.bos, *tokenizer.encode(TEXT), tokenizer.end]
    predicted = [token for tokens, _ in built.examples for token in tokens[1:].tolist()]
    assert predicted == whole[1:]
    assert all(len(tokens) <= 17 and (weights[1:] == 2).all() for tokens, weights in built.examples)


def test_five_thousand_rows_take_a_moment(tokenizer):
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "an", "old", "red", "sea"]
    data = chats(*[said(" ".join(draw.choices(words, k=8)), " ".join(draw.choices(words, k=8))) for _ in range(5_000)])
    start = time.process_time()
    lint.examine(data, tokenizer, context=128)
    assert time.process_time() - start < 4  # about ten times what it takes
