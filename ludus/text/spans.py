"""A conversation as a person sees it: its tokens one by one, which are special, and which are learned.

For a terminal, a pipe and a page alike; how each of them is coloured is theirs to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ludus.base.console import clean
from ludus.text.chat import Learn
from ludus.text.examples import rendered
from ludus.text.formats import Chat
from ludus.text.tokenizer import Tokenizer

PLAIN = "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Span:
    """A token as it is shown: its text, whether it is special, whether it is learned; `role` of whose words it is."""

    text: str
    token: int
    special: bool
    learned: bool


def view(tokenizer: Tokenizer, chat: Chat, learn: Learn = "all") -> list[Span]:
    """Return a conversation token by token, with its loss mask; characters of several tokens stand with the last."""
    [one] = rendered(tokenizer, [chat], learn)
    special = {index: token for token, index in tokenizer.special_ids.items()}
    spans, waiting = [], b""
    for token, bit in zip(one.tokens, one.mask, strict=True):
        if token in special:
            text, waiting = waiting.decode("utf-8", "replace") + special[token], b""
        else:
            text, waiting = _complete(waiting + tokenizer.piece(token))
        spans.append(Span(text, token, token in special, bool(bit)))
    if waiting and spans:
        spans[-1] = Span(spans[-1].text + waiting.decode("utf-8", "replace"), *_rest(spans[-1]))
    return spans


def plain(spans: Sequence[Span]) -> str:
    """Return spans as text in which what is learned stands between ⟦ and ⟧."""
    text, before = "", False
    for span in spans:
        text += ("⟦" if span.learned else "⟧") if span.learned != before else ""
        text += span.text
        before = span.learned
    return text + ("⟧" if before else "")


def coloured(spans: Sequence[Span]) -> str:
    """Return spans for a terminal, each set off from its neighbours: what is learned is green, special tokens bold."""
    text = ""
    for index, span in enumerate(spans):
        style = f"\x1b[48;5;{(22, 28)[index % 2]};38;5;231m" if span.learned else ("\x1b[2m", "\x1b[2;4m")[index % 2]
        style += ("\x1b[1m" if span.learned else "\x1b[1;35m") if span.special else ""
        text += f"{style}{clean(span.text)}{PLAIN}".replace("\n", f"↵{PLAIN}\n{style}")
    return text


def shown(spans: Sequence[Span], *, colour: bool) -> str:
    """Return spans in colours, or with ⟦ ⟧ around what is learned."""
    return coloured(spans) if colour else clean(plain(spans))


def _rest(span: Span) -> tuple[int, bool, bool]:
    return span.token, span.special, span.learned


def _complete(content: bytes) -> tuple[str, bytes]:
    """Part bytes into the characters that are whole and the beginning of one that is not."""
    for cut in range(min(4, len(content) + 1)):
        head, tail = content[: len(content) - cut], content[len(content) - cut :]
        try:
            return head.decode("utf-8"), tail
        except UnicodeDecodeError:
            continue
    return content.decode("utf-8", "replace"), b""
