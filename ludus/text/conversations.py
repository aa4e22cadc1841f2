"""Conversations and preferences that a person brings, as JSON Lines.

A line is `{"messages": [...]}`, `{"prompt", "completion"}`, or for preferences `{"prompt", "chosen", "rejected"}`,
where an answer may also be a list of messages.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ludus.base.errors import DataError
from ludus.text.chat import Message, validate

Conversation = list[Message]


def read_conversations(path: str | Path) -> list[Conversation]:
    """Read conversations; raises `DataError` naming the line that is none."""
    return [_conversation(record, place) for place, record in _records(Path(path))]


def read_preferences(path: str | Path) -> list[tuple[Conversation, Conversation]]:
    """Read preferences as (chosen, rejected) conversations; raises `DataError` naming the line that is none."""
    found = []
    for place, record in _records(Path(path)):
        missing = [key for key in ("prompt", "chosen", "rejected") if key not in record]
        if missing:
            raise DataError(f"{place}: a preference needs prompt, chosen and rejected; {missing[0]} is missing")
        chosen, rejected = (_answered(record["prompt"], record[key], place) for key in ("chosen", "rejected"))
        found.append((chosen, rejected))
    return found


def _conversation(record: dict[str, Any], place: str) -> Conversation:
    if "messages" in record:
        return _checked(record["messages"], place)
    if "prompt" in record and "completion" in record:
        return _answered(record["prompt"], record["completion"], place)
    raise DataError(f"{place}: expected messages, or prompt and completion; it has {', '.join(record) or 'nothing'}")


def _answered(prompt: Any, answer: Any, place: str) -> Conversation:
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    after = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    if not isinstance(before, list) or not isinstance(after, list):
        raise DataError(f"{place}: prompt and answer must be text or lists of messages")
    return _checked([*before, *after], place)


def _checked(messages: Any, place: str) -> Conversation:
    if not isinstance(messages, list):
        raise DataError(f"{place}: messages must be a list of objects with role and content")
    try:
        validate(messages)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    return messages


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        # Not splitlines: U+2028 and its like end a line for Python, and stand unescaped within JSON.
        lines = path.expanduser().read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error}); expected JSON Lines") from None
    if not any(line.strip() for line in lines):
        raise DataError(f"{path} is empty; expected a JSON object on each line")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            raise DataError(f"{path}:{number}: not JSON; expected one object on each line") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: expected an object, got a {type(record).__name__}")
        yield f"{path}:{number}", record
