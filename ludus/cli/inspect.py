"""`ludus inspect`: what a model would learn from data, before it does: the format, the template, the mask, the trouble.

Only the model's tokenizer is read, never its weights. The tokens are those of training, made by the same function.
"""

import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ludus.base.console import say
from ludus.base.errors import ConfigError, DataError, LudusError
from ludus.cli.options import Option, Usage, read

if TYPE_CHECKING:
    from ludus.text.contract import Contract, Span
    from ludus.text.conversations import Chats
    from ludus.text.lint import Findings
    from ludus.text.tokenizer import Tokenizer

CONTEXT = 1024  # where the model says nothing
SHOWN = 1_500  # tokens of an example on a terminal; a page shows all
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")
USAGE = Usage(
    "inspect",
    "Show what a model would learn from data: format, template, loss mask token by token, and what is wrong with it",
    (("DATA", "a file (.jsonl, .json, .csv, .parquet, .txt; .gz), a folder, or a data set of the hub: owner/name"),),
    1,
    (
        Option(
            "--model", "a model or run folder, a tokenizer, or a name on the hub; only its tokenizer is read", str, "M"
        ),
        Option(
            "--template", "auto, own, ludus, chatml, llama3, mistral, qwen, gemma, alpaca or plain", str, "T", "auto"
        ),
        Option(
            "--format",
            "auto, messages, sharegpt, alpaca, prompt-completion, ... if it is not seen by itself",
            str,
            "F",
            "auto",
        ),
        Option(
            "--context", "how many tokens a row may have; by default what the model sees at once", int, "N", None, 2
        ),
        Option(
            "--learn", "all turns of the assistant, the last, or the roles named: user,assistant", str, "WHAT", "all"
        ),
        Option("--validation", "data that is held out, to be compared with", str, "FILE"),
        Option("--html", "write a page too", str, "FILE"),
        Option("--rows", "how many examples are shown", int, "N", 3, 0, 1000),
    ),
    "What is learned is coloured on a terminal, and stands between ⟦ and ⟧ elsewhere.\n"
    "The exit code is 1 if the template breaks the contract or nothing can be learned.",
)


class Inspection(NamedTuple):
    """Everything that is shown, on a terminal and on a page."""

    source: str
    model: str
    read: "Chats"
    tokenizer: "Tokenizer"
    facts: list[str]
    findings: "Findings"
    contract: "Contract"
    examples: list[tuple[str, list["Span"]]]


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    given = read(USAGE, argv)
    if given is None:
        return 0
    if given["model"] is None:
        raise ConfigError("--model is missing: whose tokenizer and template? ludus inspect DATA --model MODEL")
    from ludus.cli.screen import Screen

    screen = Screen.of_process(os.environ)
    found = inspect(given.words[0], given.options)
    for line in lines_of(found, colour=screen.colour):
        say(line)
    if given["html"]:
        from ludus.base.files import atomic_write
        from ludus.cli.inspect_page import page

        atomic_write(Path(given["html"]).expanduser(), page(found))
        say(f"\nthe page: {given['html']}")
    return 1 if found.contract.errors or found.findings.fatal else 0


def inspect(source: str, options: dict[str, Any]) -> Inspection:
    """Read the data and look at it as `options` of the verb say."""
    from ludus.text import contract, lint, templates
    from ludus.text.conversations import read_chats
    from ludus.text.tokenizer import Tokenizer

    folder = tokenizer_of(options["model"])
    tokenizer = templates.choose(Tokenizer.load(folder), options["template"])
    learn = options["learn"]
    data = read_chats(source, format=options["format"])
    held_out = read_chats(options["validation"], format=options["format"]).chats if options["validation"] else None
    seen = context_of(folder)
    context = options["context"] or seen or CONTEXT
    kept = contract.check(tokenizer, data.chats, learn)
    broken = kept.errors and not any(chat.text is not None for chat in data.chats)
    findings = (
        lint.Findings(len(data.chats), context=context)
        if broken
        else lint.examine(data.chats, tokenizer, context=context, learn=learn, validation=held_out)
    )
    step = max(1, len(data.chats) // max(options["rows"], 1))
    chosen = [] if broken else data.chats[::step][: options["rows"]]
    facts = [*facts_of(tokenizer, context, seen, options), *([] if kept.errors else stripped(tokenizer, data))]
    shown = [(chat.place, contract.view(tokenizer, chat, learn)) for chat in chosen]
    return Inspection(source, options["model"], data, tokenizer, facts, findings, kept, shown)


def stripped(tokenizer: "Tokenizer", data: "Chats") -> Iterator[str]:
    """Say how many contents of each role the template strips."""
    from ludus.text import contract

    for role, count in contract.strips(tokenizer, data.chats).most_common():
        yield f"{count:,} contents of {role} lose outer spaces, which the template strips"


def tokenizer_of(named: str) -> Path:
    """Return where the tokenizer of a model lies: in its folder, a run's newest model, a file, or on the hub."""
    from ludus.text import find, vocabularies

    path = Path(named).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        with suppress(DataError):  # a run, whose model lies deeper
            vocabularies.file_of(path)
            return path
    if not path.exists() and find.repository(named):
        return find.find(named)
    from ludus.model.hub import find as model_of

    folder = model_of(path).folder
    with suppress(DataError):  # an adapter may bring none
        vocabularies.file_of(folder)
        return folder
    return under(folder)


def under(folder: Path) -> Path:
    """Return the base of an adapter, or a model itself."""
    if not (folder / "adapter_config.json").is_file():
        return folder
    from ludus.recipes.brought import base_of

    return base_of(folder)


def context_of(folder: Path) -> int | None:
    """Return how many tokens the model sees at once, None where it does not say; an adapter's is that of its base."""
    with suppress(LudusError):
        folder = under(folder)
    if folder.suffix == ".bin" and folder.is_file():  # llama2.c's: seven numbers, of which this is the last
        with folder.open("rb") as file:
            return struct.unpack("<7i", file.read(28))[6]
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return next((config[key] for key in CONTEXT_KEYS if isinstance(config.get(key), int)), None)


def facts_of(tokenizer: "Tokenizer", context: int, seen: int | None, options: dict[str, Any]) -> Iterator[str]:
    """Say which template is used, what it adds, and what is learned."""
    from ludus.text.templates import TEMPLATES, name_of

    name = name_of(tokenizer)
    doc = TEMPLATES[name].doc if name in TEMPLATES else "the tokenizer's own"
    yield f"template {name} ({doc}); a turn ends with {tokenizer.end_token}"
    if tokenizer.added:
        count = len(tokenizer.added)
        yield f"{count} tokens are new to the model, which has to grow by them: {', '.join(tokenizer.added)}"
    origin = "--context" if options["context"] else "the model's" if seen else "a guess, the model does not say"
    yield f"context {context:,} tokens ({origin}); learned: {options['learn']}"


def lines_of(found: Inspection, *, colour: bool) -> Iterator[str]:
    """Lay an inspection out as lines."""
    from ludus.text.conversations import told
    from ludus.text.spans import shown

    yield f"{found.source}: {found.read.format}, {len(found.read.chats):,} examples"
    if found.read.left_out:
        yield f"  left out: {told(found.read.left_out)}"
    if found.read.unread:
        yield f"  columns that are not read: {', '.join(found.read.unread)}"
    yield from (f"  {fact}" for fact in found.facts)
    yield "\nfindings"
    yield from (f"  {line}" for line in found.findings.lines)
    yield from (f"  {line}" for line in found.findings.histogram)
    yield "\n" + contract_line(found.contract)
    yield from (f"  BROKEN: {error}" for error in found.contract.errors)
    yield from (f"  note: {warning}" for warning in found.contract.warnings)
    for place, spans in found.examples:
        learnt = sum(span.learned for span in spans)
        yield f"\n{place}: {len(spans):,} tokens, {learnt:,} learned"
        yield shown(spans[:SHOWN], colour=colour)
        if len(spans) > SHOWN:
            yield f"… {len(spans) - SHOWN:,} more tokens; --html shows them"


def contract_line(contract: "Contract") -> str:
    """Say how the contract stands."""
    if not contract.checked:
        return "contract: plain text is learned as it is, no template is in play"
    what = "is BROKEN" if contract.errors else "holds"
    return f"contract between training and serving: {what}, checked on {contract.checked:,} conversations"
