"""The two ways to hold a conversation: at a terminal, with a prompt and Ctrl-C, and through a pipe, line by line."""

import secrets
import sys
from contextlib import suppress

import torch

from ludus.base.errors import LudusError
from ludus.cli.chat import STORED
from ludus.cli.commands import Leave, obey, untaught
from ludus.cli.options import Given
from ludus.cli.screen import Screen
from ludus.generation.conversation import Answer, Conversation, sampling
from ludus.generation.voices import Voices
from ludus.model.cost import num_parameters

LEAVING = "Ctrl-C again or Ctrl-D leaves"


def begin(given: Given) -> Conversation:
    """Load the model and return a conversation with it that has not begun."""
    voices = load(given)
    wanted = sampling(given["max-new-tokens"], given["temperature"], given["top-k"], given["top-p"])
    seed = secrets.randbits(63) if given["seed"] is None else given["seed"]
    generator = torch.Generator().manual_seed(seed)
    return Conversation(voices.current, wanted, generator, system=given["system"], voices=voices)


def load(given: Given) -> Voices:
    """Load the model of a command line, with its adapters, as its options say."""
    return Voices.load(
        given.words[0],
        given["adapter"],
        dtype=dtype_of(given["dtype"]),
        quantise=given["quantise"],
        base=given["base"],
    )


def dtype_of(name: str) -> torch.dtype | None:
    """Return the type that an option names; None for that which is stored."""
    return None if name == STORED else getattr(torch, name)


def at_terminal(conversation: Conversation, screen: Screen) -> int:
    """Ask for a line, answer it, and so on, until Ctrl-D, /quit or the second Ctrl-C."""
    with suppress(ImportError):
        import readline  # noqa: F401 -- input() then edits the line and remembers those before
    screen.note(greeting(conversation))
    stopped = False
    while True:
        try:
            line = input(screen.bold("\n> ", prompt=True))
            stopped = not turn(line, conversation, screen)
        except KeyboardInterrupt:
            print()
            if stopped:
                return 0
            stopped = True
            screen.note(LEAVING)
        except EOFError:
            print()
            return 0
        except Leave:
            return 0
        except LudusError as error:
            stopped = False
            screen.note(str(error))


def in_pipe(conversation: Conversation, screen: Screen) -> int:
    """Answer line by line. Return 2 if there was a line that could not be answered."""
    for remark in about(conversation):
        screen.note(remark)
    code = 0
    for line in sys.stdin:
        try:
            if not turn(line.rstrip("\r\n"), conversation, screen):
                raise KeyboardInterrupt
        except Leave:
            break
        except LudusError as error:
            screen.note(f"ludus: {error}")
            code = error.exit_code
    return code


def turn(line: str, conversation: Conversation, screen: Screen) -> bool:
    """Obey a command or answer a message. Return False if the answer was stopped with Ctrl-C."""
    if not line.strip():
        return True
    if line.startswith("/") and not line.startswith("//"):
        screen.note(obey(line.strip(), conversation))
        return True
    answer = conversation.ask(line.removeprefix("/") if line.startswith("//") else line)
    if answer.prompt.dropped_turns:
        screen.note(left_out(answer.prompt.dropped_turns, conversation.speaker.context))
    finished = True
    try:
        for piece in answer:
            screen.write(piece)
    except KeyboardInterrupt:
        finished = False
    kept = conversation.keep(answer)
    screen.write("\n")
    if not finished:
        screen.note(f"stopped; {LEAVING}")
    elif answer.finish == "length":
        screen.note(cut_off(answer, conversation))
    if not kept:
        screen.note("no answer; this turn is left out of the history")
    return finished


def cut_off(answer: Answer, conversation: Conversation) -> str:
    """Say which limit an answer has come to."""
    if answer.prompt.max_new_tokens < conversation.sampling.max_new_tokens:
        return f"cut off: the context of {conversation.speaker.context:,} tokens is full"
    return f"cut off after {len(answer.tokens):,} tokens; --max-new-tokens allows more"


def left_out(turns: int, context: int) -> str:
    """Say that the history was cut."""
    which = "the oldest turn" if turns == 1 else f"the {turns} oldest turns"
    return f"{which} left out: the model sees {context:,} tokens at once"


def greeting(conversation: Conversation) -> str:
    """Return the first lines: which model this is, and how to go on."""
    speaker = conversation.speaker
    facts = [f"{num_parameters(speaker.model.shape) / 1e6:.2f} M parameters", f"context {speaker.context:,} tokens"]
    facts.append(f"temperature {conversation.sampling.temperature:g}")
    lines = [f"{speaker.folder}: {', '.join(facts)}", *about(conversation), "/help lists the commands; Ctrl-D leaves"]
    return "\n".join(lines)


def about(conversation: Conversation) -> list[str]:
    """Return what one should know before talking with a model."""
    voices = conversation.voices
    lines = [] if voices is None else [*spoken(voices), *voices.notes]
    return [*lines, *untaught(conversation.speaker)]


def spoken(voices: Voices) -> list[str]:
    """Say which adapter speaks, on which base, and which others there are."""
    if not voices.adapted:
        return []
    current, names = voices.shelf.current, ", ".join(voices.adapted)
    who = f"the adapter {current} speaks" if current else "the bare model speaks"
    others = (
        f"; /adapter NAME changes to another of {names}" if len(voices.adapted) > 1 else "; /adapter off takes it off"
    )
    return [f"{who}, on {voices.bare.folder}{others}"]
