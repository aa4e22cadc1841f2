"""From exercises and conversations to what the sources read: tokens and loss masks, rendered by the one template."""

import random
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


def fitting(examples: Sequence[Example], context: int) -> list[Example]:
    """Keep the examples that fit into a row and hold something to learn; count and show the others.

    Raises:
        DataError: none is left.
    """
    kept = [(tokens, weights) for tokens, weights in examples if len(tokens) <= context + 1 and weights[1:].any()]
    if not kept:
        raise DataError(f"none of {len(examples)} conversations fits into data.context={context} tokens; raise it")
    if len(kept) < len(examples):
        lost = len(examples) - len(kept)
        say(f"  left out: {lost:,} of {len(examples):,} conversations, longer than {context} tokens")
    return kept
