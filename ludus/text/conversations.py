"""Conversations and preferences that a person brings: a file, a folder or a data set of the hub, in any customary form.

`rows.py` reads rows, `formats.py` and `preferences.py` make conversations of them; here they are counted. A row that
cannot be learned from is left out under its reason; one that is no conversation is an error that names its line.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ludus.base.console import say
from ludus.base.errors import DataError
from ludus.text import preferences
from ludus.text.chat import learned
from ludus.text.formats import Chat, Conversation, Unusable, convert, unread
from ludus.text.rows import rows_of


@dataclass(frozen=True)
class Chats:
    """What was read: the conversations, their form (several joined by +), and those left out by reason.

    `unread` counts the rows in which a column stands that the form does not look at.
    """

    chats: list[Chat]
    format: str
    left_out: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Pairs:
    """Preferences as (chosen, rejected), their form, and the rows left out by reason."""

    pairs: list[tuple[Conversation, Conversation]]
    format: str
    left_out: Counter[str] = field(default_factory=Counter)


def read_chats(source: str | Path, *, format: str = "auto") -> Chats:
    """Read conversations and plain texts; `format` is found by the columns unless it is named.

    Raises `DataError` naming the line that is no conversation, or if none can be learned from.
    """
    chats: list[Chat] = []
    forms: dict[str, None] = {}
    left_out: Counter[str] = Counter()
    columns: Counter[str] = Counter()
    for place, record in rows_of(source):
        try:
            found = convert(record, format, place)
            forms[found.form] = None
            columns.update(unread(record, found.form))
            usable = [chat for chat in found.chats if chat.text is not None or any(learned(chat.messages, "all"))]
            left_out.update(problem.reason for problem in found.unusable)
            left_out.update(["without an answer to learn"] * (len(found.chats) - len(usable)))
            chats += usable
        except Unusable as problem:
            left_out[problem.reason] += 1
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
    if not chats:
        raise DataError(f"{source} holds nothing to learn from: {told(left_out) or 'it has no rows'}")
    return Chats(chats, "+".join(forms), left_out, columns)


def read_pairs(source: str | Path) -> Pairs:
    """Read preferences; raises `DataError` naming the line that is none, or if there are none."""
    pairs: list[tuple[Conversation, Conversation]] = []
    forms: dict[str, None] = {}
    left_out: Counter[str] = Counter()
    for place, record in rows_of(source):
        try:
            form, pair = preferences.convert(record)
            forms[form] = None
            pairs.append(pair)
        except Unusable as problem:
            left_out[problem.reason] += 1
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
    if not pairs:
        raise DataError(f"{source} holds no preferences to learn from: {told(left_out) or 'it has no rows'}")
    return Pairs(pairs, "+".join(forms), left_out)


def read_conversations(path: str | Path) -> list[Conversation]:
    """Read conversations alone; raises `DataError` naming the line that is none, or holds nothing to learn."""
    found = []
    for place, record in rows_of(path):
        try:
            form, chats, unusable = convert(record, place=place)
            if form == "text":
                raise DataError(f"expected messages, or prompt and completion; it has {', '.join(record)}")
            if unusable:
                raise unusable[0]
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        found += [chat.messages for chat in chats]
    return found


def read_preferences(path: str | Path) -> list[tuple[Conversation, Conversation]]:
    """Read preferences as (chosen, rejected) conversations, and say how many rows were left out, and why."""
    found = read_pairs(path)
    if found.left_out:
        say(f"  left out of {len(found.pairs) + found.left_out.total():,} preferences: {told(found.left_out)}")
    return found.pairs


def told(counts: Counter[str]) -> str:
    """Return counts as `3 has an empty answer, 1 holds a picture`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
