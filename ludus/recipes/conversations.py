"""From exercises and conversations to what the sources read: tokens and loss masks, rendered by the one template."""

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ludus.base.console import say
from ludus.base.errors import DataError
from ludus.base.seeds import derive_seed
from ludus.corpus.exercises.kinds import Exercise
from ludus.data.pairs import Example, Pair
from ludus.text.chat import Message, render
from ludus.text.tokenizer import Tokenizer


def question(tokenizer: Tokenizer, exercise: Exercise, before: Sequence[Message] = ()) -> list[int]:
    """Render a question, after what was said `before`, up to where the assistant begins to speak."""
    asked: Message = {"role": "user", "content": exercise.prompt}
    return render(tokenizer, [*before, asked], generation_prompt=True).tokens


def answered(exercise: Exercise, answer: str) -> list[Message]:
    """Return a question with an answer to it."""
    return [{"role": "user", "content": exercise.prompt}, {"role": "assistant", "content": answer}]


def in_both_styles(
    exercises: Sequence[Exercise], *, rambling_share: float, turns: int, seed: int
) -> list[list[Message]]:
    """Answer each exercise, rightly, in one of two styles, with up to `turns` of them in a conversation."""
    choose = random.Random(derive_seed(seed, "style"))
    conversations: list[list[Message]] = []
    waiting = 0
    for exercise in exercises:
        answer = exercise.rambling() if choose.random() < rambling_share else exercise.concise()
        if waiting:
            conversations[-1] += answered(exercise, answer)
            waiting -= 1
        else:
            conversations.append(answered(exercise, answer))
            waiting = _more_turns(choose, turns)
    return conversations


def histories(exercises: Sequence[Exercise], *, turns: int, seed: int) -> list[list[Message]]:
    """Return what was said before each exercise: nothing for most, else the exercises before it, answered concisely.

    A model that is only ever tuned on first questions forgets how to take a second one.
    """
    choose = random.Random(derive_seed(seed, "histories"))
    return [
        [
            message
            for earlier in exercises[max(0, number - _more_turns(choose, turns)) : number]
            for message in answered(earlier, earlier.concise())
        ]
        for number in range(len(exercises))
    ]


def style_pairs(tokenizer: Tokenizer, exercises: Sequence[Exercise], *, turns: int, seed: int) -> list[Pair]:
    """Prefer the concise one of two right answers, to a first question or a later one."""
    before = histories(exercises, turns=turns, seed=seed)
    return [
        Pair(
            example(tokenizer, [*said, *answered(exercise, exercise.concise())]),
            example(tokenizer, [*said, *answered(exercise, exercise.rambling())]),
        )
        for said, exercise in zip(before, exercises, strict=True)
    ]


def _more_turns(choose: random.Random, turns: int) -> int:
    """Draw how many more turns a conversation has; most have none."""
    return choose.choice([0, 0, *range(turns)])


def example(tokenizer: Tokenizer, messages: Sequence[Message]) -> Example:
    """Render a conversation to tokens and weights: 1 on what the assistant says, its stop token included."""
    rendered = render(tokenizer, messages)
    return np.array(rendered.tokens, dtype=np.int64), np.array(rendered.mask, dtype=np.float32)


def fitting(groups: Sequence[Sequence[Example]], context: int) -> list[int]:
    """Return the numbers of the groups whose conversations all fit into a row and hold something to learn.

    The others are counted and shown. Raises:
        DataError: none is left.
    """
    reasons = [_unfit(group, context) for group in groups]
    left_out = Counter(reason for reason in reasons if reason)
    lost = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    if left_out.total() == len(groups):
        raise DataError(f"none of {len(groups)} examples can be learned from: {lost}")
    if left_out:
        say(f"  left out of {len(groups):,} examples: {lost}")
    return [number for number, reason in enumerate(reasons) if not reason]


def _unfit(group: Sequence[Example], context: int) -> str | None:
    if any(len(tokens) > context + 1 for tokens, _ in group):
        return f"longer than data.context={context} tokens"
    return None if all(weights[1:].any() for _, weights in group) else "without an answer by the assistant"
