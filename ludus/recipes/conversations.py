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


def question(tokenizer: Tokenizer, exercise: Exercise) -> list[int]:
    """Render a question up to where the assistant begins to speak."""
    return render(tokenizer, [{"role": "user", "content": exercise.prompt}], generation_prompt=True).tokens


def answered(exercise: Exercise, answer: str) -> list[Message]:
    """Return a question with an answer to it."""
    return [{"role": "user", "content": exercise.prompt}, {"role": "assistant", "content": answer}]


def in_both_styles(exercises: Sequence[Exercise], *, rambling_share: float, seed: int) -> list[list[Message]]:
    """Answer each exercise, rightly, in one of two styles."""
    choose = random.Random(derive_seed(seed, "style"))
    return [
        answered(exercise, exercise.rambling() if choose.random() < rambling_share else exercise.concise())
        for exercise in exercises
    ]


def style_pairs(tokenizer: Tokenizer, exercises: Sequence[Exercise]) -> list[Pair]:
    """Prefer the concise one of two right answers."""
    return [
        Pair(
            example(tokenizer, answered(exercise, exercise.concise())),
            example(tokenizer, answered(exercise, exercise.rambling())),
        )
        for exercise in exercises
    ]


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
