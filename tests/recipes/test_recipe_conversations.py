import random
from collections import Counter

import numpy as np
import pytest

from ludus.base.errors import DataError
from ludus.corpus.exercises.kinds import addition
from ludus.recipes.conversations import example, fitting, histories, in_both_styles, question, style_pairs
from ludus.text.settings import TokenizerSettings
from ludus.text.train import train

DRAW = random.Random(0)
EXERCISES = [addition(50)(DRAW) for _ in range(400)]


@pytest.fixture(scope="module")
def tokenizer():
    return train(["a b c"], TokenizerSettings(kind="character"))


def test_both_styles_are_right_and_have_their_share():
    chats = in_both_styles(EXERCISES, rambling_share=0.25, turns=1, seed=1)
    assert [chat[0]["content"] for chat in chats] == [exercise.prompt for exercise in EXERCISES]
    answers = [chat[1]["content"] for chat in chats]
    right = [{exercise.concise(), exercise.rambling()} for exercise in EXERCISES]
    assert all(answer in either for answer, either in zip(answers, right, strict=True))
    assert sum("," in answer for answer in answers) == pytest.approx(100, abs=30)


@pytest.mark.parametrize("turns", [1, 2, 5])
def test_every_exercise_is_in_one_conversation_in_its_order(turns):
    chats = in_both_styles(EXERCISES, rambling_share=0.5, turns=turns, seed=1)
    asked = [message["content"] for chat in chats for message in chat if message["role"] == "user"]
    assert asked == [exercise.prompt for exercise in EXERCISES]
    lengths = Counter(len(chat) // 2 for chat in chats)
    assert max(lengths) == turns
    assert lengths[1] > len(chats) / 3
    assert in_both_styles(EXERCISES, rambling_share=0.5, turns=turns, seed=1) == chats


def test_histories_are_earlier_exercises_rightly_answered():
    before = histories(EXERCISES, turns=3, seed=1)
    answers = {exercise.prompt: exercise.answer for exercise in EXERCISES}
    for number, said in enumerate(before):
        earlier = [exercise.prompt for exercise in EXERCISES[max(0, number - len(said) // 2) : number]]
        assert [message["content"] for message in said[::2]] == earlier
        assert [message["content"] for message in said[1::2]] == [answers[prompt] for prompt in earlier]
    assert {len(said) for said in before} == {0, 2, 4}
    assert not any(histories(EXERCISES, turns=1, seed=1))


def test_a_question_is_the_beginning_of_the_conversation_that_answers_it(tokenizer):
    exercise = EXERCISES[0]
    for said in ([], histories(EXERCISES, turns=3, seed=1)[-3]):
        prompt = question(tokenizer, exercise, said)
        answered = [
            *said,
            {"role": "user", "content": exercise.prompt},
            {"role": "assistant", "content": exercise.answer},
        ]
        tokens, weights = example(tokenizer, answered)
        assert tokens[: len(prompt)].tolist() == prompt
        assert weights[len(prompt) :].tolist() == [1] * len(exercise.answer) + [1]
        assert tokens[-1] == tokenizer.end


def test_pairs_differ_in_the_last_answer_only(tokenizer):
    for pair, exercise in zip(style_pairs(tokenizer, EXERCISES[:40], turns=3, seed=1), EXERCISES, strict=False):
        chosen, rejected = pair.chosen[0].tolist(), pair.rejected[0].tolist()
        assert chosen[:-1] == rejected[: len(chosen) - 1]
        assert tokenizer.decode(rejected[len(chosen) - 1 :]) == exercise.rambling().removeprefix(exercise.answer)


def group(*lengths: int, learned: bool = True) -> list:
    return [(np.zeros(length, int), np.full(length, float(learned))) for length in lengths]


def test_only_what_fits_and_teaches_is_kept_and_the_rest_is_counted(capsys):
    groups = [group(11), group(12), group(11, 12), group(3, 4), group(5, learned=False), group(1)]
    assert fitting(groups, context=10) == [0, 3]
    expected = "2 longer than data.context=10 tokens, 2 without an answer by the assistant"
    assert capsys.readouterr().out == f"  left out of 6 examples: {expected}\n"
    assert fitting(groups[:1], context=10) == [0]
    assert capsys.readouterr().out == ""
    with pytest.raises(
        DataError, match=r"^none of 1 examples can be learned from: 1 longer than data\.context=10 tokens$"
    ):
        fitting(groups[1:2], context=10)
