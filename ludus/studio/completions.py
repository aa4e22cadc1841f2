"""OpenAI's chat completions, as far as one model on one machine can honour them.

What is asked for and cannot be done is refused by name; the only fields passed over are labels without effect. Beyond
the format: `top_k`, and `trim`, which leaves out the oldest turns of a history that does not fit; without it such a
history is an error. What was left out is told under `ludus` in the response.
"""

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ludus.base.errors import DataError, nearest
from ludus.generation.conversation import Answer, chat_prompt, sampling
from ludus.generation.speaker import Speaker

MOST_TOKENS = 2048
LARGEST = 2**63 - 1
SETTINGS = [
    "messages",
    "model",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "max_completion_tokens",
    "seed",
    "trim",
]
LABELS = ["user", "metadata", "store", "safety_identifier", "service_tier"]
# A field that asks for nothing when it has this value (or null), and for what is not there when it has another.
IDLE: dict[str, Any] = {
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logprobs": False,
    "tools": [],
    "stop": [],
}
IDLE |= {"response_format": {"type": "text"}, "logit_bias": {}, "parallel_tool_calls": True, "tool_choice": "none"}


@dataclass(frozen=True)
class Request:
    """A checked request."""

    messages: list[dict[str, str]]
    model: str = ""
    stream: bool = False
    usage: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = MOST_TOKENS
    seed: int | None = None
    trim: bool = False

    def answer(self, speaker: Speaker) -> Answer:
        """Return the answer, not yet drawn. Raises DataError if the conversation does not fit or is none."""
        prompt = chat_prompt(speaker, self.messages, self.max_tokens, cut=self.trim)
        seed = secrets.randbits(63) if self.seed is None else self.seed
        wanted = sampling(self.max_tokens, self.temperature, self.top_k, self.top_p)
        return Answer(speaker, prompt, wanted, torch.Generator().manual_seed(seed))


def parse(body: Any) -> Request:
    """Check a request. Raises DataError, one line, for what is no request or cannot be done."""
    if not isinstance(body, dict):
        raise DataError("the body is no JSON object")
    body = {key: value for key, value in body.items() if value is not None}
    for key, value in body.items():
        if key not in (*SETTINGS, *LABELS) and not (key in IDLE and value == IDLE[key]):
            known = f"{key} is not supported; leave it out" if key in IDLE else f"unknown field {key}"
            near = None if key in IDLE else nearest(key, SETTINGS)
            raise DataError(known + (f"; did you mean {near}?" if near else ""))
    options = body.get("stream_options", {})
    longest = whole(body, "max_completion_tokens", whole(body, "max_tokens", MOST_TOKENS, 1), 1)
    return Request(
        messages=[plain(message) for message in typed(body, "messages", list, [])],
        model=typed(body, "model", str, ""),
        stream=typed(body, "stream", bool, False),
        usage=isinstance(options, dict) and options.get("include_usage") is True,
        temperature=number(body, "temperature", 0.0, 0, 10),
        top_p=number(body, "top_p", 1.0, 0, 1),
        top_k=whole(body, "top_k", 0, 0),
        max_tokens=min(longest, MOST_TOKENS),
        seed=whole(body, "seed", 0, 0) if "seed" in body else None,
        trim=typed(body, "trim", bool, False),
    )


def typed(body: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    """Return a field of a type."""
    value = body.get(key, default)
    if not isinstance(value, kind):
        raise DataError(f"{key} must be a {kind.__name__}, got {json.dumps(value)[:40]}")
    return value


def number(body: Mapping[str, Any], key: str, default: float, least: float, most: float) -> float:
    """Return a number within its range."""
    value = body.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise DataError(f"{key} must be a number from {least:g} to {most:g}, got {json.dumps(value)[:40]}")
    return value


def whole(body: Mapping[str, Any], key: str, default: int, least: int) -> int:
    """Return a whole number that a program can count to."""
    value = body.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise DataError(f"{key} must be a whole number of {least} or more, got {json.dumps(value)[:40]}")
    return value


def plain(message: Any) -> dict[str, str]:
    """Return a message with its parts of text joined, and `developer` by its older name."""
    if not isinstance(message, dict):
        raise DataError("a message must be an object with role and content")
    content = message.get("content")
    if isinstance(content, list) and all(map(is_text, content)):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise DataError("the content of a message must be text; images, sound, files and tools are not understood")
    others = {key: value for key, value in message.items() if value is not None}
    role = {"developer": "system"}.get(str(message.get("role")), str(message.get("role")))
    return others | {"role": role, "content": content}


def is_text(part: Any) -> bool:
    """Tell whether a part of a message is text."""
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


@dataclass
class Reply:
    """The objects that are sent back for one answer."""

    model: str
    answer: Answer
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self) -> dict[str, Any]:
        """Return the response that is sent at once."""
        message = {"role": "assistant", "content": self.answer.text}
        choice = {"index": 0, "message": message, "finish_reason": self.answer.finish, "logprobs": None}
        return self._object("chat.completion", [choice]) | {"usage": self.usage()}

    def first(self) -> str:
        """Return the event that opens a stream."""
        return self._event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def piece(self, text: str) -> str:
        """Return the event for a piece of text."""
        return self._event([{"index": 0, "delta": {"content": text}, "finish_reason": None}])

    def last(self, usage: bool) -> Iterator[str]:
        """Yield the events that close a stream."""
        yield self._event([{"index": 0, "delta": {}, "finish_reason": self.answer.finish}])
        if usage:
            yield event(self._object("chat.completion.chunk", []) | {"usage": self.usage()})
        yield "data: [DONE]\n\n"

    def usage(self) -> dict[str, int]:
        """Count the tokens."""
        sent, drawn = len(self.answer.prompt.tokens), len(self.answer.tokens)
        return {"prompt_tokens": sent, "completion_tokens": drawn, "total_tokens": sent + drawn}

    def _event(self, choices: list[dict[str, Any]]) -> str:
        return event(self._object("chat.completion.chunk", choices))

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return head | {"ludus": {"dropped_turns": self.answer.prompt.dropped_turns}}


def event(content: Any) -> str:
    """Return one server-sent event."""
    return f"data: {json.dumps(content)}\n\n"


def failure(message: str, code: str | None = None) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
