"""The comparison after fine-tuning: the same prompts and seeds before and after, and what was forgotten.

One model is in memory at a time. The prompts are examples that training has not seen: those that the hash of their
first words holds out, or the held-out exercises.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ludus.adapters.opening import open_model
from ludus.base.console import say
from ludus.base.errors import DataError
from ludus.corpus.exercises.build import read
from ludus.evaluation import side_by_side
from ludus.evaluation.compare_settings import CompareSettings
from ludus.evaluation.forgetting import bits_per_byte, general
from ludus.evaluation.held_out import Asked, asked, parted, prompt_tokens, spread
from ludus.generation.engine import Sampling
from ludus.generation.speaker import Speaker
from ludus.learning import device
from ludus.model.resize import resize
from ludus.model.transformer import Transformer
from ludus.recipes.brought import context_of, conversations, tokenizer_of
from ludus.recipes.place import Made, Place, Stage
from ludus.recipes.schema import Recipe
from ludus.runs.manifest import Manifest
from ludus.text.templates import choose
from ludus.text.tokenizer import Tokenizer

FOLDER = "comparison"
HELD_OUT = 0.05  # of the data that is asked about where none was held out: then training has seen it
ROWS = 32


@dataclass(frozen=True)
class Side:
    """One of the two: its name, its tokenizer, and how to bring the model into memory."""

    name: str
    tokenizer: Tokenizer
    load: Callable[[], Transformer]


def side(
    path: Path | str, *, name: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
) -> Side:
    """Return a side by the name of its model, or of its adapter, which is put on its base as it was trained on it."""
    return Side(name, tokenizer_of(path), lambda: open_model(path, device=device, dtype=dtype, quantise="as-trained"))


def compared(
    before: Side, after: Side, questions: Sequence[Asked], settings: CompareSettings, *, context: int
) -> side_by_side.Comparison:
    """Ask both models everything, one after the other.

    A base model without a template of its own is asked as its tuned successor is; two of them, in plain words.
    """
    answering = choose(after.tokenizer)
    spoken = before.tokenizer if before.tokenizer.template is not None else answering
    tokenizers = (spoken, answering)
    longest = max((len(prompt_tokens(one, question)) for one in tokenizers for question in questions), default=0)
    room = min(settings.max_new_tokens, max(context - longest, context // 8))
    if room < settings.max_new_tokens:
        say(f"  answers of {room} tokens at most, not {settings.max_new_tokens}: the context is {context}")
    questions = side_by_side.fitting(questions, tokenizers, context=context, max_new_tokens=room)
    questions = spread(questions, settings.prompts)
    texts = general(Path(settings.text).expanduser() if settings.text else None, settings.bytes)
    found = []
    for one, tokenizer in zip((before, after), tokenizers, strict=True):
        model = one.load().eval()
        # Before rows are added, which would take some of the probability away from the text.
        measured = bits_per_byte(model, one.tokenizer, texts, context=context, rows=ROWS // 4, limit_bytes=None)
        most = max(max(prompt_tokens(tokenizer, question)) for question in questions)
        model = with_room(model, max(most + 1, tokenizer.vocabulary_size))
        sampling = Sampling(room, Speaker(model, tokenizer, Path()).stops, temperature=settings.temperature)
        said = side_by_side.measure(model, tokenizer, questions, sampling, settings.seeds, general=measured, rows=ROWS)
        found.append(said)
        del model
    facts = {
        "before_model": before.name,
        "after_model": after.name,
        "sampling": f"temperature {settings.temperature:g}, at most {room} tokens",
        "text": Path(settings.text).name if settings.text else "documentation of the Python standard library",
        "same_template": spoken.template == answering.template,
    }
    return side_by_side.Comparison(questions, found[0], found[1], facts)


def questions_of(place: Place) -> list[Asked]:
    """Return the held-out examples of what was learned from."""
    settings = place.recipe.sft
    if not settings.data:
        return [
            Asked(({"role": "user", "content": exercise.prompt},), exercise.concise())
            for exercise in read(place.exercises / "held_out.jsonl")
        ]
    if settings.validation:
        return [asked(chat.messages) for chat in conversations(settings.validation)]
    chats = [chat for name in _listed(settings.data) for chat in conversations(name, settings.format)]
    return [asked(chat.messages) for chat in parted(chats, settings.validation_share or HELD_OUT)[1]]


def settings_for(recipe: Recipe) -> CompareSettings:
    """Return the recipe's section; its defaults where the schema has none."""
    return getattr(recipe, "compare", None) or CompareSettings()


def make(place: Place, manifest: Manifest) -> Made:
    """Compare the model that fine-tuning began with to the one it left."""
    settings = settings_for(place.recipe)
    questions = questions_of(place)
    if not questions:
        raise DataError("no example of the data is held out, so there is nothing to ask; give it more examples")
    if place.recipe.sft.data and not place.recipe.sft.validation and not place.recipe.sft.validation_share:
        say("  warning: no data is held out (sft.validation_share=0), so the model has been trained on these prompts")
    how: dict[str, Any] = {
        "device": device.place(place.recipe.device).device,
        "dtype": getattr(torch, place.recipe.sft.weights),
    }
    before = side(place.base("sft"), name="before fine-tuning", **how)
    after = side(place.model("sft"), name="after fine-tuning", **how)
    found = compared(
        before, after, questions, settings, context=min(place.recipe.data.context, context_of(place.base("sft")))
    )
    found.facts["title"] = place.recipe.name
    folder = place.stage("compare") / FOLDER
    written = side_by_side.write(found, folder)
    whole = side_by_side.summary(found)
    for line in side_by_side.lines(whole):
        say(f"  {line}")
    say(f"  see: {written[-1].resolve().as_uri()}")
    return Made({"comparison": folder}, summary=whole)


def inputs(place: Place) -> dict[str, Path]:
    """Return both models and the data."""
    sft, text = place.recipe.sft, settings_for(place.recipe).text
    found = {"base": place.base("sft"), "model": place.model("sft")}
    named = [sft.validation] if sft.validation else _listed(sft.data)
    files = [Path(name).expanduser() for name in named]
    if not files:
        found["exercises"] = place.exercises
    # A data set of the hub is no file; its name is among the settings.
    found |= {f"data {number}" if number else "data": file for number, file in enumerate(files) if file.exists()}
    return found | ({"text": Path(text).expanduser()} if text else {})


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return what decides the outcome."""
    asked_for = settings_for(recipe).model_dump(mode="json")
    data = recipe.sft.model_dump(mode="json", include={"data", "format", "validation", "validation_share", "weights"})
    return {"compare": asked_for, "context": recipe.data.context, "sft": data, "threads": recipe.threads}


def _listed(data: str | list[str] | None) -> list[str]:
    return [data] if isinstance(data, str) else data or []


def with_room(model: Transformer, vocabulary: int) -> Transformer:
    """Give a base model rows for the tokens that its successor's template has added, as tuning began with."""
    return resize(model, vocabulary) if vocabulary > model.shape.vocabulary else model


STAGE = Stage(
    name="compare",
    settings=settings_of,
    inputs=inputs,
    needs=lambda place: ["sft", *([] if place.recipe.sft.data else ["exercises"])],
    make=make,
)
