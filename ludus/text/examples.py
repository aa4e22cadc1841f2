"""What training reads: tokens, and how much each of them counts; made of conversations and texts by the one rendering.

A weight is 1 on what is learned, times the example's own. Examples that do not fit, or hold nothing to learn, are left
out and counted. A plain text is learned whole and cut where it is longer than the context; a conversation never is,
since a cut answer teaches never to stop.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ludus.base.errors import DataError
from ludus.text.chat import Learn, Rendered, render, render_batch
from ludus.text.formats import Chat
from ludus.text.tokenizer import Tokenizer

Example = tuple[np.ndarray, np.ndarray]  # tokens int64, weights float32; as in ludus.data.pairs


@dataclass(frozen=True)
class Examples:
    """Examples, the numbers of the chats they were made of, and what was left out by reason."""

    examples: list[Example]
    origins: list[int]
    left_out: Counter[str] = field(default_factory=Counter)


def example(tokenizer: Tokenizer, chat: Chat, learn: Learn = "all") -> Example:
    """Render one conversation or text to tokens and weights, whatever its length."""
    if chat.text is not None:
        return _weighed(_text(tokenizer, tokenizer.encode(chat.text)), chat.weight)
    return _weighed(render(tokenizer, chat.messages, learn=learn), chat.weight)


def rendered(tokenizer: Tokenizer, chats: Sequence[Chat], learn: Learn = "all") -> Iterator[Rendered]:
    """Render many conversations and texts, encoded together; in their order."""
    spoken = render_batch(tokenizer, [chat.messages for chat in chats if chat.text is None], learn=learn)
    for chat in chats:
        yield next(spoken) if chat.text is None else _text(tokenizer, tokenizer.encode(chat.text))


def build(tokenizer: Tokenizer, chats: Iterable[Chat], *, context: int, learn: Learn = "all") -> Examples:
    """Make the examples that fit into rows of `context` predictions.

    Raises `DataError` with the counts if there is nothing to learn in any of them.
    """
    chats = list(chats)
    found = Examples([], [])
    for number, (chat, one) in enumerate(zip(chats, rendered(tokenizer, chats, learn), strict=True)):
        reason = unfit(one, context) if chat.text is None else None
        if reason:
            found.left_out[reason] += 1
            continue
        for piece in _pieces(_weighed(one, chat.weight), context):
            found.examples.append(piece)
            found.origins.append(number)
    if not found.examples:
        lost = ", ".join(f"{count:,} {reason}" for reason, count in found.left_out.items())
        raise DataError(f"none of {len(chats)} examples can be learned from: {lost or 'there are none'}")
    return found


def unfit(one: Rendered, context: int) -> str | None:
    """Return why an example cannot be learned from, None if it can. The first token is never predicted."""
    if len(one.tokens) > context + 1:
        learnt = any(one.mask[1 : context + 1])
        return f"longer than data.context={context} tokens" + ("" if learnt else ", nothing learned within them")
    return None if any(one.mask[1:]) else "without a token to learn"


def _weighed(one: Rendered, weight: float) -> Example:
    return np.array(one.tokens, np.int64), np.array(one.mask, np.float32) * np.float32(weight)


def _text(tokenizer: Tokenizer, content: Sequence[int]) -> Rendered:
    tokens = [tokenizer.bos, *content, tokenizer.end]
    return Rendered(tokens, [0] + [1] * (len(tokens) - 1))


def _pieces(one: Example, context: int) -> Iterator[Example]:
    """Cut a text into pieces that share one token at each cut, so that each is predicted once."""
    tokens, weights = one
    for start in range(0, max(len(tokens) - 1, 1), context):
        yield tokens[start : start + context + 1], weights[start : start + context + 1]
