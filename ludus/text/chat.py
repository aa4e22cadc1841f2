"""Conversations to tokens: one rendering for training and for serving (law 5).

The template's words around the contents (`words.py`) are encoded with special tokens, once for each sequence of roles;
the contents are encoded without. So no content can reach the template's logic, merge with its words or become a special
token, and a prompt rendered for serving is, token for token, the beginning of the same conversation rendered for
training. Contents stand as given, or stripped of outer spaces where the template strips them. What the model has to
say itself is learned: from where a served prompt ends to the token that ends the turn.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from ludus.base.errors import ConfigError, DataError, nearest
from ludus.text.template import ROLES
from ludus.text.templates import OURS
from ludus.text.tokenizer import Tokenizer
from ludus.text.words import Words, stripped, words_of

Message: TypeAlias = Mapping[str, Any]  # role, content and, where its loss is switched, weight: 0 or 1
Learn: TypeAlias = Literal["all", "last"] | Collection[str]
KEYS = ("role", "content", "weight")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens; `mask` is 1 on what is learned: what the assistant says, and the end of its turn."""

    tokens: list[int]
    mask: list[int]


@dataclass(frozen=True, slots=True)
class Turn:
    """The words around one content. `lead` and `tail` are the speaker's own, learned together with the content.

    `before` is what a served prompt shows. `space` goes with the content, as in ` Hello`, so that it is no token of its
    own.
    """

    before: list[int]
    lead: list[int]
    space: str
    strip: tuple[bool, bool]
    tail: list[int]


@dataclass(frozen=True, slots=True)
class Frame:
    """The words of one sequence of roles as tokens: around each content, and after the last."""

    turns: tuple[Turn, ...]
    rest: list[int]

    def text(self, index: int, content: str) -> str:
        """Return what is encoded in place of a content."""
        turn = self.turns[index]
        return turn.space + stripped(content, turn.strip)


def render(
    tokenizer: Tokenizer, messages: Sequence[Message], *, generation_prompt: bool = False, learn: Learn = "all"
) -> Rendered:
    """Render messages (`role`, `content`); with `generation_prompt`, up to where the assistant begins to speak.

    `learn` says what the mask is 1 on: "all" turns of the assistant, the "last" of them, or all turns of the roles
    named; a message of weight 0 is never learned. Raises `DataError` for an unknown role, an empty answer or a message
    with other keys.
    """
    validate(messages)
    frame = frame_of(tokenizer, tuple(message["role"] for message in messages), generation_prompt)
    contents = [frame.text(index, message["content"]) for index, message in enumerate(messages)]
    encoded = [encode_content(tokenizer, content) for content in contents]
    return _assembled(frame, encoded, learned(messages, learn))


def render_batch(
    tokenizer: Tokenizer, conversations: Iterable[Sequence[Message]], *, learn: Learn = "all"
) -> Iterator[Rendered]:
    """Render many conversations, as `render` does, encoding all contents together and each only once."""
    chats = list(conversations)
    frames, wanted = [], {}
    for messages in chats:
        validate(messages)
        frame = frame_of(tokenizer, tuple(message["role"] for message in messages), False)
        frames.append(frame)
        wanted |= dict.fromkeys(frame.text(index, message["content"]) for index, message in enumerate(messages))
    known = dict(zip(wanted, encode_contents(tokenizer, list(wanted)), strict=True))
    for messages, frame in zip(chats, frames, strict=True):
        encoded = [known[frame.text(index, message["content"])] for index, message in enumerate(messages)]
        yield _assembled(frame, encoded, learned(messages, learn))


def encode_content(tokenizer: Tokenizer, content: str) -> list[int]:
    """Encode what stands within a text: no special tokens, and no space that only a text's beginning has."""
    return tokenizer.encode(content, beginning=False)


def encode_contents(tokenizer: Tokenizer, contents: list[str]) -> list[list[int]]:
    """Encode many contents, on all cores unless the vocabulary puts a space before what it takes for a beginning."""
    if encode_content(tokenizer, "a") != tokenizer.encode("a"):
        return [encode_content(tokenizer, content) for content in contents]
    return [ids.tolist() for ids in tokenizer.encode_batch(contents)]


def learned(messages: Sequence[Message], learn: Learn) -> list[bool]:
    """Say of each message whether it is learned. Raises `ConfigError` for a role that does not exist."""
    roles = ["assistant"] if isinstance(learn, str) and learn in ("all", "last") else roles_of(learn)
    found = [message["role"] in roles for message in messages]
    if learn == "last":
        last = max((index for index, yes in enumerate(found) if yes), default=-1)
        found = [index == last for index in range(len(messages))]
    return [yes and message.get("weight", 1) != 0 for yes, message in zip(found, messages, strict=True)]


def roles_of(learn: Learn) -> list[str]:
    """Return the roles that were chosen, given as a collection or as `user,assistant`."""
    roles = [each.strip() for each in learn.split(",")] if isinstance(learn, str) else list(learn)
    for role in roles:
        if role not in ROLES:
            raise ConfigError(f"learn: {role!r} is none of all, last, {', '.join(ROLES)}{_hint(role)}")
    return roles


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
    if message.get("weight", 1) not in (0, 1):
        return f"its weight is {message['weight']!r}; a message is learned (1) or not (0)"
    others = [key for key, value in message.items() if key not in KEYS and value is not None]
    return f"unknown key {others[0]!r}; a message has `role` and `content`" if others else None


def _hint(role: object) -> str:
    near = nearest(role, ROLES) if isinstance(role, str) else None
    return f"; did you mean {near!r}?" if near else ""


def _assembled(frame: Frame, contents: Sequence[list[int]], learnt: Sequence[bool]) -> Rendered:
    tokens: list[int] = []
    mask: list[int] = []
    for turn, content, yes in zip(frame.turns, contents, learnt, strict=True):
        tokens += turn.before
        mask += [0] * len(turn.before)
        tokens += turn.lead
        tokens += content
        tokens += turn.tail
        mask += [int(yes)] * (len(tokens) - len(mask))
    tokens += frame.rest
    mask += [0] * len(frame.rest)
    return Rendered(tokens, mask)


@lru_cache(maxsize=4096)
def frame_of(tokenizer: Tokenizer, roles: tuple[str, ...], generation_prompt: bool = False) -> Frame:
    """Encode the template's words around the contents of these roles, checked against what serving would show."""
    words = template_words(tokenizer, roles, generation_prompt)
    befores, leads, spaces = [], [], []
    for index, role in enumerate(roles):
        before, lead, space = words.texts[index], "", ""
        if role == "assistant":
            before, lead = _as_served(template_words(tokenizer, roles[:index], True), words, index)
            if lead.endswith(" "):
                lead, space = lead[:-1], " "
        elif before.endswith(" "):
            before, space = before[:-1], " "
        befores.append(before)
        leads.append(lead)
        spaces.append(space)
    heads = [
        tokenizer.encode_template(text, beginning=not index) for index, text in enumerate((*befores, words.texts[-1]))
    ]
    turns = []
    for index, role in enumerate(roles):
        tail, heads[index + 1] = _closing(tokenizer, role, heads[index + 1])
        lead = tokenizer.encode_template(leads[index])
        turns.append(Turn(heads[index], lead, spaces[index], words.strips[index], tail))
    return Frame(tuple(turns), heads[-1])


def _closing(tokenizer: Tokenizer, role: str, tokens: list[int]) -> tuple[list[int], list[int]]:
    """Part the words after a content: what ends the turn, its stop token included, and the rest."""
    if tokenizer.end in tokens:
        stop = tokens.index(tokenizer.end) + 1
        return tokens[:stop], tokens[stop:]
    if role == "assistant":
        raise DataError(
            f"the chat template does not close the assistant's turn with {tokenizer.end_token}, "
            "so the model would never learn to stop; mend chat_template.jinja or eos_token in tokenizer_config.json"
        )
    return [], tokens


def _as_served(prompt: Words, words: Words, index: int) -> tuple[str, str]:
    """Cut the words before an answer where a served prompt ends, so that both tokenise alike."""
    shown, asked = words.texts[index], prompt.texts[-1]
    same = prompt.texts[:-1] == words.texts[:index] and prompt.strips == words.strips[:index]
    if not same or not shown.startswith(asked):
        raise DataError(
            "the chat template shows training another prompt than serving: "
            f"{asked!r} is asked to go on, but {shown!r} stands before the answer; "
            "mend chat_template.jinja, or choose another with --template"
        )
    return asked, shown[len(asked) :]


@lru_cache(maxsize=4096)
def template_words(tokenizer: Tokenizer, roles: tuple[str, ...], generation_prompt: bool) -> Words:
    """Return the template's words around the contents of these roles."""
    template = tokenizer.template
    if template is None:
        raise DataError("this tokenizer has no chat template; choose one with --template, such as alpaca or chatml")
    return words_of(
        template,
        roles,
        generation_prompt=generation_prompt,
        tokens=names_of(tokenizer),
        trusted=template in OURS,
    )


def names_of(tokenizer: Tokenizer) -> dict[str, str]:
    """Return what templates call the special tokens."""
    return {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.end_token, "pad_token": tokenizer.pad_token}
