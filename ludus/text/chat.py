"""Conversations to tokens: one rendering for training and for serving (law 5).

The template is rendered with a marker in place of every content, once for each sequence of roles; what stands between
the markers is encoded with special tokens, the contents without. So no content can reach the template's logic, merge
with its words or become a special token, and a prompt rendered for serving is, token for token, the beginning of the
same conversation rendered for training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from ludus.base.errors import DataError, nearest
from ludus.text.template import ROLES, render_text
from ludus.text.tokenizer import Tokenizer

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens; `mask` is 1 on what the assistant says and on the token that ends its turn."""

    tokens: list[int]
    mask: list[int]


@dataclass(frozen=True, slots=True)
class _Gap:
    """The template's words before, between or after contents."""

    tokens: list[int]
    mask: list[int]


def render(tokenizer: Tokenizer, messages: Sequence[Message], *, generation_prompt: bool = False) -> Rendered:
    """Render messages (`role`, `content`); with `generation_prompt`, up to where the assistant begins to speak.

    Contents stand exactly as given, spaces at their ends included. Raises `DataError` for an unknown role, an empty
    answer or a message with more than role and content.
    """
    validate(messages)
    roles = tuple(message["role"] for message in messages)
    gaps = _gaps(tokenizer, roles, generation_prompt)
    tokens, mask = list(gaps[0].tokens), list(gaps[0].mask)
    for message, role, gap in zip(messages, roles, gaps[1:], strict=True):
        content = tokenizer.encode(message["content"])
        tokens += content
        mask += [int(role == "assistant")] * len(content)
        tokens += gap.tokens
        mask += gap.mask
    return Rendered(tokens, mask)


def validate(messages: Sequence[Message]) -> None:
    """Raise `DataError` unless the messages are a conversation."""
    if not messages:
        raise DataError("the conversation has no messages; it needs at least one")
    for number, message in enumerate(messages, 1):
        problem = _problem(message)
        if problem:
            raise DataError(f"message {number} of {len(messages)}: {problem}")


def _problem(message: Message) -> str | None:
    if not isinstance(message, Mapping):
        return f"is a {type(message).__name__}; a message is an object with `role` and `content`"
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        return f"unknown role {role!r}; known are {', '.join(ROLES)}{_hint(role)}"
    if not isinstance(content, str):
        return f"its content is a {type(content).__name__}; only text is understood"
    if role == "assistant" and not content.strip():
        return "the assistant's content is empty; nothing could be learnt from it, leave the conversation out"
    others = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
    return f"unknown key {others[0]!r}; a message has `role` and `content`" if others else None


def _hint(role: object) -> str:
    near = nearest(role, ROLES) if isinstance(role, str) else None
    return f"; did you mean {near!r}?" if near else ""


@lru_cache(maxsize=1024)
def _gaps(tokenizer: Tokenizer, roles: tuple[str, ...], generation_prompt: bool) -> tuple[_Gap, ...]:
    """Encode the template's words around the contents of these roles, checked and masked."""
    words = _words(tokenizer, roles, generation_prompt)
    parts = [[text] for text in words]
    for index, role in enumerate(roles):
        if role == "assistant":
            parts[index] = _as_served(_words(tokenizer, roles[:index], True), words[: index + 1])
    encoded = [[token for part in texts for token in tokenizer.encode_template(part)] for texts in parts]
    return (
        _Gap(encoded[0], [0] * len(encoded[0])),
        *(_closing(tokenizer, role, tokens) for role, tokens in zip(roles, encoded[1:], strict=True)),
    )


def _closing(tokenizer: Tokenizer, role: str, tokens: list[int]) -> _Gap:
    """Mask the words after a content: after the assistant's, all up to the token that ends the turn."""
    if role != "assistant":
        return _Gap(tokens, [0] * len(tokens))
    if tokenizer.end not in tokens:
        raise DataError(
            f"the chat template does not close the assistant's turn with {tokenizer.end_token}, "
            "so the model would never learn to stop; mend chat_template.jinja or eos_token in tokenizer_config.json"
        )
    learnt = tokens.index(tokenizer.end) + 1
    return _Gap(tokens, [1] * learnt + [0] * (len(tokens) - learnt))


def _as_served(prompt: list[str], words: list[str]) -> list[str]:
    """Cut the words before an answer where a served prompt ends, so that both tokenise alike."""
    if prompt[:-1] != words[:-1] or not words[-1].startswith(prompt[-1]):
        raise DataError(
            "the chat template shows training another prompt than serving: "
            f"{prompt[-1]!r} is asked to go on, but {words[-1]!r} stands before the answer; mend chat_template.jinja"
        )
    return [prompt[-1], words[-1][len(prompt[-1]) :]]


def _words(tokenizer: Tokenizer, roles: tuple[str, ...], generation_prompt: bool) -> list[str]:
    """Render with markers and return the len(roles) + 1 texts around them."""
    markers = _markers(tokenizer.template, len(roles))
    messages = [{"role": role, "content": marker} for role, marker in zip(roles, markers, strict=True)]
    names = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.end_token, "pad_token": tokenizer.pad_token}
    text = render_text(tokenizer.template, messages, generation_prompt=generation_prompt, tokens=names)
    places = [text.find(marker) for marker in markers]
    if any(text.count(marker) != 1 for marker in markers) or any(a > b for a, b in pairwise(places)):
        raise DataError(
            f"the chat template does not show every message once and in order (roles {', '.join(roles)}); "
            "mend chat_template.jinja"
        )
    words: list[str] = []
    for marker in markers:
        before, text = text.split(marker, 1)
        words.append(before)
    return [*words, text]


def _markers(template: str, count: int) -> list[str]:
    """Return texts that do not occur in the template; contents are never in the same string, so they cannot clash."""
    stem = "content"
    while stem in template:
        stem += "*"
    return [f"\ue000{stem}{index}\ue001" for index in range(count)]
