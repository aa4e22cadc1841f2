"""Which examples are kept from training, and what a model is asked when they are shown to it.

What lives here: the split of conversations, and a conversation as a question with the answer it should get. What does
not: reading files, or a model. The one idea: the side is decided by what the user says first, so that two examples of
one prompt can never lie on both sides, and an example keeps its side when others are added.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ludus.data.pairs import Example
from ludus.text.chat import Message, render
from ludus.text.formats import Chat
from ludus.text.tokenizer import Tokenizer

STEPS = 2**32
Item = TypeVar("Item")


@dataclass(frozen=True)
class Asked:
    """A conversation up to where the assistant speaks, and the answer that is known to be good, None without one."""

    messages: tuple[Message, ...]
    reference: str | None = None

    @property
    def prompt(self) -> str:
        """Return what was said last."""
        return self.messages[-1]["content"]


def asked(messages: Sequence[Message]) -> Asked:
    """Take the last answer of a conversation as the one to be compared with; what follows it is left out."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers or not answers[-1]:
        return Asked(tuple(messages[: answers[-1]] if answers else messages))
    return Asked(tuple(messages[: answers[-1]]), messages[answers[-1]]["content"])


def is_held_out(messages: Sequence[Message], share: float) -> bool:
    """Tell whether a conversation is one of the `share` that is kept from training."""
    said = next((message["content"] for message in messages if message["role"] == "user"), messages[0]["content"])
    digest = hashlib.sha256(" ".join(said.lower().split()).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") < share * STEPS


def parted(chats: Sequence[Chat], share: float) -> tuple[list[Chat], list[Chat]]:
    """Return the conversations to train on, and those held out."""
    sides = [is_held_out(chat.messages, share) for chat in chats]
    return (
        [chat for chat, out in zip(chats, sides, strict=True) if not out],
        [chat for chat, out in zip(chats, sides, strict=True) if out],
    )


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Take so many, at even distances."""
    if len(items) <= count:
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, count).astype(int)]


def prompt_tokens(tokenizer: Tokenizer, question: Asked) -> list[int]:
    """Render a question up to where the assistant begins to speak."""
    return render(tokenizer, question.messages, generation_prompt=True).tokens


def reference_example(tokenizer: Tokenizer, question: Asked) -> Example | None:
    """Render a question with its good answer, weighted on that answer and its end alone; None without an answer."""
    if question.reference is None:
        return None
    answered: Message = {"role": "assistant", "content": question.reference}
    rendered = render(tokenizer, [*question.messages, answered])
    weights = np.array(rendered.mask, dtype=np.float32)
    weights[: len(prompt_tokens(tokenizer, question))] = 0  # earlier answers of the conversation are given
    return np.array(rendered.tokens, dtype=np.int64), weights
