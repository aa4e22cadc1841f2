"""The commands of a chat: what a line that begins with a slash does."""

import shutil
import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ludus.base.errors import ConfigError, nearest
from ludus.cli.screen import clean
from ludus.generation.conversation import Conversation, Prompt
from ludus.generation.speaker import Speaker
from ludus.generation.voices import OFF
from ludus.text.templates import TEMPLATES, name_of
from ludus.text.tokenizer import Tokenizer

HOTTEST = 10.0
WIDEST = 100


class Leave(Exception):
    """The person wants to go."""


class Command(NamedTuple):
    """One command: what follows it, what it does in words, and the act, which returns what to show."""

    takes: str
    doc: str
    act: Callable[[Conversation, str], str]


def obey(line: str, conversation: Conversation) -> str:
    """Carry out a line that begins with a slash and return what to show. Raises Leave; ConfigError for no command."""
    word, _, rest = line.partition(" ")
    if word not in COMMANDS:
        near = nearest(word, COMMANDS)
        advice = f"did you mean {near}?" if near else "/help lists them"
        raise ConfigError(f"unknown command {word}; {advice} (a message that begins with / is written with //)")
    return COMMANDS[word].act(conversation, rest.strip())


def system(conversation: Conversation, text: str) -> str:
    """Set the system message, or remove it."""
    conversation.system = text or None
    return "system message set; it holds from the next message on" if text else "no system message"


def temperature(conversation: Conversation, text: str) -> str:
    """Set the temperature."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= HOTTEST:
        raise ConfigError(f"/temperature expects a number from 0 to {HOTTEST:g}, got '{text}'")
    conversation.sampling = replace(conversation.sampling, temperature=value)
    return f"temperature {value:g}" + (" (the likeliest token each time)" if value == 0 else "")


def tokens(conversation: Conversation, text: str) -> str:
    """Show the tokens that were sent last, or that a text would send."""
    prompt = conversation.prompt(text) if text else conversation.sent
    if prompt is None:
        return "nothing was sent yet; /tokens TEXT shows what TEXT would send"
    return shown(prompt, conversation.speaker.tokenizer, conversation.speaker.context)


def shown(prompt: Prompt, tokenizer: Tokenizer, context: int) -> str:
    """Lay tokens out as `id piece`: special tokens bare, text in quotes, so that neither can pass for the other."""
    names = {index: token for token, index in tokenizer.special_ids.items()}
    # Blanks within a piece do not break a line; they are turned back once the lines are laid out.
    pieces = [f"{token}\0{names.get(token) or quoted(tokenizer.piece(token))}" for token in prompt.tokens]
    width = min(WIDEST, shutil.get_terminal_size().columns) - 2
    glued = "  ".join(piece.replace(" ", "\1") for piece in pieces)
    lines = textwrap.wrap(glued, width, break_long_words=False, break_on_hyphens=False, drop_whitespace=True)
    body = "\n".join(f"  {line}" for line in lines).replace("\0", " ").replace("\1", " ")
    left = f"; {prompt.dropped_turns} older turns were left out" if prompt.dropped_turns else ""
    return f"{body}\n  {len(prompt.tokens):,} tokens of a context of {context:,}{left}"


def quoted(piece: bytes) -> str:
    """Return bytes as text in quotes, or as bytes where they are not whole characters."""
    try:
        return clean(repr(piece.decode()))
    except UnicodeDecodeError:
        return repr(piece)


def reset(conversation: Conversation, text: str) -> str:
    """Forget the history."""
    conversation.messages, conversation.sent = [], None
    kept = " (the system message stays; /system removes it)" if conversation.system else ""
    return f"a new conversation{kept}"


def adapter(conversation: Conversation, text: str) -> str:
    """Show who speaks, or let another adapter speak."""
    voices = conversation.voices
    if voices is None or not voices.adapted:
        return "there is no adapter; `ludus chat MODEL --adapter FOLDER` puts one on the model"
    if not text:
        names = [*voices.adapted, OFF]
        speaking = voices.shelf.current or OFF
        lines = [f"{'*' if name == speaking else ' '} {name}  {place_of(conversation, name)}" for name in names]
        return "\n".join(lines)
    conversation.hear(None if text == OFF else text)
    kept = "; the history stays, /reset forgets it" if conversation.messages else ""
    who = f"{'the bare model speaks' if text == OFF else f'{text} speaks'}{kept}"
    return "\n".join([who, *untaught(conversation.speaker)])


def untaught(speaker: Speaker) -> list[str]:
    """Say so where nothing tells that a model was taught to answer, and how it is talked to all the same."""
    if speaker.only_continues:
        return ["this model was only pretrained: it continues text (ludus generate) and was never taught to answer"]
    if not speaker.borrowed:
        return []
    name = name_of(speaker.tokenizer)
    return [
        "this model has no chat template: it continues text (ludus generate) and was probably never taught to answer",
        f"what you write is put into the template {name} ({TEMPLATES[name].doc})",
    ]


def place_of(conversation: Conversation, name: str) -> str:
    """Return where a voice lies."""
    assert conversation.voices is not None
    if name == OFF:
        return f"the bare model, {conversation.voices.bare.folder}"
    return str(conversation.voices.adapted[name].folder)


def help_(conversation: Conversation, text: str) -> str:
    """List the commands."""
    wide = max(len(f"{name} {command.takes}") for name, command in COMMANDS.items())
    lines = [f"  {f'{name} {command.takes}':<{wide}}  {command.doc}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "  Ctrl-C stops an answer; Ctrl-C again or Ctrl-D leaves"])


def quit_(conversation: Conversation, text: str) -> str:
    """Leave."""
    raise Leave


COMMANDS: dict[str, Command] = {
    "/system": Command("TEXT", "say how the assistant should be; without TEXT, remove it", system),
    "/temperature": Command("X", "how freely to draw: 0 takes the likeliest token each time", temperature),
    "/tokens": Command("[TEXT]", "the exact tokens that were sent last, or that TEXT would send", tokens),
    "/adapter": Command("[NAME|off]", "the adapters, or which of them speaks; off for the bare model", adapter),
    "/reset": Command("", "begin a new conversation", reset),
    "/help": Command("", "this list", help_),
    "/quit": Command("", "leave", quit_),
}
