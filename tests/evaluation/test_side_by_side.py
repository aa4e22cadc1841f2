"""Two models side by side: the same prompts and seeds, nothing in the page that was not escaped, figures that hold."""

import json
import math

import pytest
import torch

from ludus.base.errors import DataError
from ludus.evaluation import side_by_side
from ludus.evaluation.forgetting import bits_per_byte
from ludus.evaluation.held_out import Asked, asked, is_held_out, parted, prompt_tokens, reference_example, spread
from ludus.evaluation.likelihood import likelihoods
from ludus.generation.engine import Sampling
from ludus.text.chat import render
from ludus.text.formats import Chat
from ludus.text.settings import TokenizerSettings
from ludus.text.train import train

HOSTILE = "<script>alert(1)</script> & \x1b[31m\u202e"
QUESTIONS = [
    Asked(({"role": "user", "content": "What is a fox?"},), "An animal."),
    Asked(({"role": "user", "content": HOSTILE},), HOSTILE),
    Asked(({"role": "user", "content": "Say nothing"},)),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train(["What is a fox? An animal, as is the quick brown dog. " * 9], TokenizerSettings(vocabulary=280))


@pytest.fixture(scope="module")
def models(tiny, tokenizer):
    return [tiny(seed=seed, vocabulary=tokenizer.vocabulary_size, context=200) for seed in (0, 1)]


@pytest.fixture(scope="module")
def found(models, tokenizer):
    sampling = Sampling(12, frozenset([tokenizer.end]), temperature=0.8)
    texts = [f"general text number {number}" for number in range(9)]
    sides = [
        side_by_side.measure(
            model, tokenizer, QUESTIONS, sampling, [0, 3], general=bits_per_byte(model, tokenizer, texts, context=32)
        )
        for model in models
    ]
    return side_by_side.Comparison(QUESTIONS, *sides, {"title": HOSTILE, "before_model": HOSTILE})


def test_the_same_model_and_seed_say_the_same(models, tokenizer, found):
    sampling = Sampling(12, frozenset([tokenizer.end]), temperature=0.8)
    again = side_by_side.answers(models[0], tokenizer, QUESTIONS, sampling, 3)
    assert again == found.before.answers[3]
    assert again != found.before.answers[0]


def test_a_line_for_each_prompt_and_seed(found, tmp_path):
    paths = side_by_side.write(found, tmp_path / "out")
    assert [path.name for path in paths] == ["compare.jsonl", "compare.json", "compare.html"]
    lines = [json.loads(line) for line in paths[0].read_text().splitlines()]
    assert [(line["prompt"], line["seed"]) for line in lines] == [(q.prompt, s) for s in (0, 3) for q in QUESTIONS]
    assert lines[0]["reference_mean_logp"]["before"] < 0
    assert lines[2]["reference_mean_logp"] == {"before": None, "after": None}
    assert {line["finish"]["before"] for line in lines} <= {"stop", "length"}
    whole = json.loads(paths[1].read_text())
    assert whole["forgetting"]["documents"] == 9
    assert whole["before"]["stopped_low"] <= whole["before"]["stopped"] <= whole["before"]["stopped_high"]
    assert side_by_side.lines(whole)[-1].split(":")[0].strip() in ("forgotten", "improved", "within noise")


def test_the_page_escapes_what_models_and_people_say(found):
    from ludus.evaluation.side_by_side_page import render as page

    html = page(found, side_by_side.summary(found))
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;" in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert html.count(">Good answer<") == 2
    assert 'name="viewport"' in html


def test_the_mean_logp_of_a_good_answer_is_that_of_a_plain_computation(models, tokenizer, found):
    question = QUESTIONS[0]
    prompt = prompt_tokens(tokenizer, question)
    answer = render(tokenizer, [*question.messages, {"role": "assistant", "content": question.reference}]).tokens
    with torch.no_grad():
        logps = models[0](torch.tensor([answer[:-1]]))[0].log_softmax(-1)
    wanted = [float(logps[place - 1, answer[place]]) for place in range(len(prompt), len(answer))]
    wanted = wanted[: answer.index(tokenizer.end, len(prompt)) - len(prompt) + 1]
    record = side_by_side.records(found)[0]
    assert record["reference_mean_logp"]["before"] == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)


def test_perplexity_is_over_all_tokens_of_good_answers(models, tokenizer, found):
    examples = [reference_example(tokenizer, question) for question in QUESTIONS[:2]]
    each = likelihoods(models[1], examples)
    wanted = math.exp(sum(one.nats for one in each) / sum(one.tokens for one in each))
    assert side_by_side.manner(found.after)["reference_perplexity"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("tokens", "share"), [([], 0), ([1, 2, 3], 0), ([1, 2, 3, 4, 5], 0), ([1] * 8, 0.8), ([1, 2, 3, 4] * 2, 0.2)]
)
def test_repetition_is_the_share_of_runs_that_were_there_before(tokens, share):
    assert side_by_side.repetition(tokens) == pytest.approx(share)


def test_prompts_without_room_are_counted_and_shown(tokenizer, capsys):
    long = Asked(({"role": "user", "content": "fox " * 100},))
    kept = side_by_side.fitting([*QUESTIONS, long], [tokenizer], context=150, max_new_tokens=10)
    assert kept == QUESTIONS
    assert "1 of 4 prompts are left out" in capsys.readouterr().out
    with pytest.raises(DataError, match="none of 1 prompts leaves room"):
        side_by_side.fitting([long], [tokenizer], context=50, max_new_tokens=10)


def test_the_last_answer_of_a_conversation_is_the_good_one(tokenizer):
    said = [("system", "be kind"), ("user", "one"), ("assistant", "first"), ("user", "two"), ("assistant", "second")]
    question = asked([{"role": role, "content": content} for role, content in said])
    assert (question.prompt, question.reference, len(question.messages)) == ("two", "second", 4)
    tokens, weights = reference_example(tokenizer, question)
    learned = tokens[weights.nonzero()[0]].tolist()
    assert tokenizer.decode(learned) == "second"
    assert learned[-1] == tokenizer.end
    assert asked([{"role": "user", "content": "alone"}]).reference is None


def test_the_split_holds_prompts_together_and_is_stable():
    def chat(prompt: str, answer: str) -> Chat:
        return Chat([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])

    chats = [chat(f"question {number}", answer) for number in range(400) for answer in ("a", "b")]
    training, held_out = parted(chats, 0.2)
    assert len(training) + len(held_out) == len(chats)
    assert 0.1 < len(held_out) / len(chats) < 0.3
    assert not {each.messages[0]["content"] for each in training} & {each.messages[0]["content"] for each in held_out}
    assert is_held_out(chat(" Question  7", "c").messages, 0.2) == is_held_out(chat("question 7", "d").messages, 0.2)
    assert parted(chats, 0)[1] == []
    fewer = parted(chats, 0.1)[1]
    assert all(each in held_out for each in fewer)
    assert spread(range(10), 4) == [0, 3, 6, 9]
