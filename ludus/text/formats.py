"""Rows of every customary form become conversations: which form it is, is seen from the columns.

A form is a function from a row to its conversations; it is recognised by the columns it needs. A row that is no
conversation is an error that names its place; one that is, and cannot be learned from (an empty answer, a picture, a
call of a tool), is `Unusable`, with the reason under which it is counted.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ludus.base.errors import DataError, nearest
from ludus.text.chat import Message, validate

Conversation = list[Message]
Record = Mapping[str, Any]

SPEAKERS = {
    **dict.fromkeys(("human", "user", "prompter", "question", "instruction"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "bard", "bing", "chatbot", "output"), "assistant"),
    **dict.fromkeys(("system", "context"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "function_response", "tool_response"), "tool"),
    "developer": "developer",
}
CALLS = ("function_call", "tool_call", "tool_calls")
LISTS = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog")
ANSWERS = ("output", "response", "completion", "answer")


class Unusable(DataError):
    """A row that is understood and cannot be learned from; `reason` is what it is counted under."""

    def __init__(self, reason: str, says: str = "") -> None:
        super().__init__(says or f"it {reason}; leave it out")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, or a plain `text`, with how much it weighs and where it was read."""

    messages: Conversation
    weight: float = 1.0
    text: str | None = None
    place: str = ""


class Form(NamedTuple):
    """One form of a row: which columns it needs (of each group one), what it becomes, and what else it may read."""

    needs: tuple[tuple[str, ...], ...]
    convert: Callable[[Record], list[Any]]
    reads: tuple[str, ...] = ()


class Converted(NamedTuple):
    """What a row became: its form, its conversations, and those in it that cannot be learned from."""

    form: str
    chats: list[Chat]
    unusable: list[Unusable]


def recognise(record: Record, format: str = "auto") -> str:
    """Return the form of a row by its columns. Raises `DataError` that shows those it has and the forms there are."""
    if format != "auto":
        if format not in FORMS:
            near = nearest(format, FORMS)
            hint = f"; did you mean {near!r}?" if near else ""
            raise DataError(f"unknown format {format!r}{hint} There are: auto, {', '.join(FORMS)}")
        missing = [group for group in FORMS[format].needs if not _has(record, group)]
        if missing:
            raise DataError(f"expected {' or '.join(missing[0])} for format {format}; it has {_columns(record)}")
        return format
    found = next((name for name, form in FORMS.items() if all(_has(record, group) for group in form.needs)), None)
    if found:
        return found
    if _has(record, ("chosen", "preferred_output")) and _has(record, ("rejected", "non_preferred_output")):
        raise DataError("it holds preferences (chosen and rejected), which `ludus dpo` learns from, not conversations")
    forms = "; ".join(f"{name} ({', '.join('|'.join(group) for group in form.needs)})" for name, form in FORMS.items())
    raise DataError(f"expected messages, or prompt and completion; it has {_columns(record)}. Known are: {forms}")


def convert(record: Record, format: str = "auto", place: str = "") -> Converted:
    """Return what a row becomes. Raises `DataError` where it is no conversation, `Unusable` if it cannot be learned."""
    name = recognise(record, format)
    weight = weight_of(record)
    if name == "text":
        text = _first(record, FORMS["text"].needs[0])
        if not isinstance(text, str):
            raise DataError(f"its text is a {type(text).__name__}; expected a string")
        if not text.strip():
            raise Unusable("has an empty text")
        return Converted(name, [Chat([], weight, text, place)], [])
    found = Converted(name, [], [])
    for messages in FORMS[name].convert(record):
        try:
            found.chats.append(Chat(checked(messages), weight, None, place))
        except Unusable as problem:
            found.unusable.append(problem)
    return found


def unread(record: Record, form: str) -> list[str]:
    """Return the columns of a row that its form does not look at."""
    known = {name for group in FORMS[form].needs for name in group} | {*FORMS[form].reads, "weight"}
    return [name for name, value in record.items() if name not in known and value is not None]


def weight_of(record: Record) -> float:
    """Return the row's `weight`, 1 where there is none. Raises `DataError` unless it is a number from 0."""
    given = record.get("weight")
    if given is None or given == "":
        return 1.0
    try:
        weight = float(given)
    except (TypeError, ValueError):
        weight = math.nan
    if isinstance(given, bool) or not math.isfinite(weight) or weight < 0:
        raise DataError(f"its weight is {given!r}; expected a number from 0")
    if weight == 0:
        raise Unusable("has weight 0")
    return weight


def checked(messages: Any) -> Conversation:
    """Return messages in our form: role, content, and a weight where it is 0. Raises `DataError` for what is none."""
    if not isinstance(messages, list):
        raise DataError("messages must be a list of objects with role and content")
    found = [_message(message, number, len(messages)) for number, message in enumerate(messages, 1)]
    for number, message in enumerate(found, 1):
        if isinstance(message, Mapping) and message.get("role") == "assistant" and not message.get("content"):
            says = (
                f"message {number} of {len(found)}: the assistant's content is empty; nothing could be learnt from it"
            )
            raise Unusable("has an empty answer", f"{says}, leave the conversation out")
    try:
        validate(found)
    except DataError as error:
        if "content is empty" in str(error):
            raise Unusable("has an empty answer", str(error)) from None
        raise
    return found


def asked(prompt: Any, answer: Any) -> Conversation:
    """Put an answer, text or messages, after a prompt, text or messages."""
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    after = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    if isinstance(after, Mapping):
        after = [after]
    if not isinstance(before, list) or not isinstance(after, list):
        raise DataError("prompt and answer must be text or lists of messages")
    return [*before, *after]


def _message(message: Any, number: int, count: int) -> Message:
    if not isinstance(message, Mapping):
        return message
    if any(message.get(key) for key in CALLS) or str(message.get("from") or message.get("role")).lower() in CALLS:
        raise Unusable("holds a call of a tool", f"message {number} of {count}: calls of tools are not understood yet")
    kept = {key: value for key, value in message.items() if value is not None}
    if "from" in kept and "value" in kept:
        speaker = str(kept.pop("from")).strip().lower()
        kept = {"role": SPEAKERS.get(speaker, speaker), "content": kept.pop("value"), **kept}
    kept["content"] = _content(kept.get("content"), number, count)
    train = kept.pop("train", kept.pop("training", None))
    if train is not None and not isinstance(train, bool):
        raise DataError(f"message {number} of {count}: its train is {train!r}; expected true or false")
    if "weight" in kept and kept["weight"] in (0, 1):
        train = bool(kept.pop("weight")) if train is None else train and bool(kept.pop("weight"))
    return {**kept, **({} if train is None or train else {"weight": 0})}


def _content(content: Any, number: int, count: int) -> Any:
    """Join a content that is given in parts; pictures and sounds are not understood."""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        return content
    if any(part.get("type", "text") != "text" for part in content):
        raise Unusable("holds something else than text", f"message {number} of {count}: only text is understood")
    return "".join(str(part.get("text") or "") for part in content)


def _messages(record: Record) -> list[Conversation]:
    messages = _first(record, LISTS)
    system = _first(record, SYSTEM)
    if isinstance(messages, list) and isinstance(system, str) and system.strip():
        first = messages[0] if messages and isinstance(messages[0], Mapping) else {}
        if "system" not in (first.get("role"), first.get("from")):
            messages = [{"role": "system", "content": system}, *messages]
    return [messages]


def _completion(record: Record) -> list[Conversation]:
    return [asked(record["prompt"], _first(record, ("completion", "response", "output")))]


def _alpaca(record: Record) -> list[Conversation]:
    system = _first(record, SYSTEM)
    opening = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    question = _with_input(record["instruction"], _first(record, ("input", "context")))
    return [[*opening, *asked(question, _first(record, ANSWERS))]]


def _seeds(record: Record) -> list[Conversation]:
    instances = record["instances"]
    if not isinstance(instances, list) or not all(isinstance(each, Mapping) for each in instances):
        raise DataError("its instances must be a list of objects with input and output")
    return [asked(_with_input(record["instruction"], each.get("input")), each.get("output")) for each in instances]


def _with_input(instruction: Any, given: Any) -> Any:
    """Return an instruction with what it is about below it."""
    if not isinstance(instruction, str):
        raise DataError(f"its instruction is a {type(instruction).__name__}; expected text")
    return f"{instruction}\n\n{given}" if isinstance(given, str) and given.strip() else instruction


def _question(record: Record) -> list[Conversation]:
    return [asked(record["question"], record["answer"])]


def _first(record: Record, names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _has(record: Record, names: tuple[str, ...]) -> bool:
    return any(record.get(name) is not None for name in names)


def _columns(record: Record) -> str:
    return ", ".join(map(str, record)) or "nothing"


SYSTEM = ("system", "system_prompt")
FORMS: dict[str, Form] = {
    "messages": Form((("messages",),), _messages, SYSTEM),
    "sharegpt": Form((LISTS[1:],), _messages, SYSTEM),
    "self-instruct": Form((("instruction",), ("instances",)), _seeds),
    "alpaca": Form((("instruction",), ANSWERS), _alpaca, (*SYSTEM, "input", "context")),
    "prompt-completion": Form((("prompt",), ("completion", "response", "output")), _completion),
    "question-answer": Form((("question",), ("answer",)), _question),
    "text": Form((("text", "content"),), lambda record: []),
}
