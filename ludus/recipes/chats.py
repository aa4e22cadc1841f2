"""The conversations of a recipe: read in whatever form they come, parted, looked through, rendered and packed.

Before anything is learned, the contract between training and serving is checked on this data and this template, and
some examples are shown token by token with what of them is learned.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from ludus.base.console import in_colour, say
from ludus.base.errors import DataError
from ludus.base.seeds import derive_seed
from ludus.corpus.exercises.build import read
from ludus.data.batch import Batch, collate
from ludus.data.sources import Rows
from ludus.evaluation.held_out import is_held_out, parted
from ludus.recipes.conversations import in_both_styles
from ludus.recipes.place import Place
from ludus.text import contract, lint
from ludus.text.conversations import read_chats, told
from ludus.text.examples import Examples, build
from ludus.text.formats import Chat
from ludus.text.spans import shown, view
from ludus.text.tokenizer import Tokenizer

SHOWN, SHOWN_TOKENS = 3, 200  # examples, and tokens of each, that are shown before training
AT_ONCE = 1 << 16  # pieces that are planned together: a tuning's data lies in memory anyway


def conversations(place: Place) -> tuple[list[Chat], list[Chat]]:
    """Return the conversations to learn from and those held out for validation: of the data, or of the exercises.

    What is held out is decided by the first words, so that no prompt is on both sides.
    """
    recipe, settings = place.recipe, place.recipe.sft
    if not settings.data:
        exercises = read(place.exercises / "train.jsonl")
        told_twice = in_both_styles(
            exercises, rambling_share=settings.rambling_share, turns=settings.turns, seed=recipe.seed
        )
        return [Chat(list(messages)) for messages in told_twice], []
    chats = list(_read(settings.data, settings.format))
    if settings.validation:
        return chats, list(_read(settings.validation, settings.format))
    if not settings.validation_share:
        return chats, []
    texts = [chat for chat in chats if chat.text is not None]
    spoken, held_out = parted([chat for chat in chats if chat.text is None], settings.validation_share)
    away = [_is_away(chat, settings.validation_share) for chat in texts]
    train = spoken + [chat for chat, out in zip(texts, away, strict=True) if not out]
    held_out += [chat for chat, out in zip(texts, away, strict=True) if out]
    if not train:
        say(f"  too few examples to hold any out: no validation of {len(chats)}")
        return chats, []
    return train, held_out


def rendered(place: Place, tokenizer: Tokenizer) -> tuple[Examples, Examples | None]:
    """Return the examples to learn from and those of the validation, looked through and shown.

    Raises:
        DataError: the template breaks the contract, or nothing in the data can be learned.
    """
    settings, context = place.recipe.sft, place.recipe.data.context
    train, held_out = conversations(place)
    contract.check(tokenizer, train, settings.learn).uphold()
    if settings.data:
        _look_through(place, tokenizer, train, held_out)
    found = build(tokenizer, train, context=context, learn=settings.learn)
    if not settings.data:  # else it has been said
        _say_left_out(found, len(train), "")
    if not held_out:
        return found, None
    try:
        validation = build(tokenizer, held_out, context=context, learn=settings.learn)
    except DataError as problem:
        say(f"  no validation: {problem}")
        return found, None
    _say_left_out(validation, len(held_out), "held-out ")
    return found, validation


def rows(place: Place, tokenizer: Tokenizer, found: Examples) -> Rows:
    """Return the source that deals the examples out, packed unless the recipe says otherwise."""
    settings = place.recipe.sft
    lengths = [len(tokens) for tokens, _ in found.examples]
    stops = np.cumsum(lengths)
    pieces = np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1)
    weights = np.concatenate([weights for _, weights in found.examples])
    learned = int(np.count_nonzero(weights))
    say(f"  {len(found.examples):,} conversations, {stops[-1]:,} tokens, of which {learned:,} are learned")
    return Rows(
        np.concatenate([tokens for tokens, _ in found.examples]),
        weights,
        lambda epoch: pieces,
        length=place.recipe.data.context + 1,
        rows=settings.rows,
        pad_token=tokenizer.pad,
        seed=derive_seed(place.recipe.seed, "sft"),
        alone=not settings.packing,
        numbered=settings.noise > 0,  # its size goes by the length of each
    )


def in_order(found: Examples, *, rows: int, pad_token: int) -> Iterator[Batch]:
    """Yield every example once, each in a row of its own: those of the validation."""
    by_length = sorted(found.examples, key=lambda one: len(one[0]))
    for start in range(0, len(by_length), rows):
        yield collate([[one] for one in by_length[start : start + rows]], pad_token=pad_token)


@lru_cache(maxsize=2)
def _read_file(name: str, format: str) -> tuple[Chat, ...]:
    found = read_chats(name, format=format)
    lost = f"; left out: {told(found.left_out)}" if found.left_out else ""
    say(f"  {name}: {found.format}, {len(found.chats):,} examples{lost}")
    return tuple(found.chats)


def _read(named: str | Sequence[str], format: str) -> Iterator[Chat]:
    for name in [named] if isinstance(named, str) else named:
        path = Path(name).expanduser()
        yield from _read_file(str(path) if path.exists() else name, format)


def _is_away(chat: Chat, share: float) -> bool:
    return is_held_out([{"role": "user", "content": chat.text or ""}], share)


def _look_through(place: Place, tokenizer: Tokenizer, train: Sequence[Chat], held_out: Sequence[Chat]) -> None:
    """Say what is wrong with the data, and show some of it as the model will see it."""
    learn, context = place.recipe.sft.learn, place.recipe.data.context
    findings = lint.examine(train, tokenizer, context=context, learn=learn, validation=held_out or None)
    for line in findings.lines:
        say(f"  {line}")
    findings.uphold()
    say("  what the model will see, and learn:" if in_colour() else "  what the model will see, and ⟦learn⟧:")
    for chat in train[:: max(1, len(train) // SHOWN)][:SHOWN]:
        spans = view(tokenizer, chat, learn)
        more = f" … {len(spans) - SHOWN_TOKENS:,} more tokens" if len(spans) > SHOWN_TOKENS else ""
        text = shown(spans[:SHOWN_TOKENS], colour=in_colour()) + more
        say("\n".join(f"    {line}" for line in text.split("\n")))


def _say_left_out(found: Examples, count: int, which: str) -> None:
    lost: Counter[str] = found.left_out
    if lost:
        say(f"  left out of {count:,} {which}examples: {told(lost)}")
