"""What a person brings by name: a model or an adapter to open, its tokenizer and its context, conversations to read.

What lives here: from a word on a command line to the thing in memory. What does not: how any of it is read. The one
idea: a model's folder, a run's, an adapter's, a llama2.c file and a name on the hub are all just names of models.
"""

from pathlib import Path

from ludus.adapters import opening
from ludus.base.console import say
from ludus.base.errors import CheckpointError
from ludus.base.files import read_json
from ludus.model import llama2c
from ludus.model.families import architecture_of
from ludus.model.hub import ADAPTER, find
from ludus.text.conversations import read_chats, told
from ludus.text.formats import Chat
from ludus.text.templates import choose
from ludus.text.tokenizer import Tokenizer

TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def base_of(path: Path) -> Path:
    """Return the model that an adapter stands on; a model's own place."""
    return opening.base_of(path).folder if (path / ADAPTER).is_file() else path


def tokenizer_of(name: str | Path) -> Tokenizer:
    """Load the tokenizer of a model, or that beside an adapter, else that of its model."""
    path = find(name).folder
    own = any((path / file).is_file() for file in TOKENIZERS)
    return Tokenizer.load(path if own else base_of(path))


def speaking(name: str | Path) -> Tokenizer:
    """Load the tokenizer with a chat template: its own, else the one that tuning gives to a model without any."""
    return choose(tokenizer_of(name))


def context_of(name: str | Path) -> int:
    """Return how many tokens a model sees at once, without loading it."""
    path = base_of(find(name).folder)
    if path.is_file():
        return llama2c.architecture(path).context
    return architecture_of(read_json(path / "config.json", CheckpointError), path).context


def conversations(source: str | Path, format: str = "auto") -> list[Chat]:
    """Read conversations of any format; texts without turns are left out, and what is left out is counted and shown."""
    found = read_chats(source, format=format)
    chats = [chat for chat in found.chats if chat.text is None]
    lost = found.left_out.copy()
    lost.update({"plain text": len(found.chats) - len(chats)})
    if lost.total():
        say(f"  left out of {lost.total() + len(chats):,} examples: {told(+lost)}")
    return chats
