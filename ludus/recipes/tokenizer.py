"""Tokenizer: train a vocabulary on the training text, compare it with others, and write the corpus as tokens."""

from pathlib import Path

import numpy as np

from ludus.base.console import say
from ludus.base.files import folder_in_progress, write_json
from ludus.corpus.build import read
from ludus.data import shards
from ludus.recipes.place import Made, Place, Stage
from ludus.runs.manifest import Manifest
from ludus.text import compare
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import prepare


def make(place: Place, manifest: Manifest) -> Made:
    """Train the tokenizer and encode both splits; each document is framed by its beginning and end tokens."""
    texts = {split: [document.text for document in read(place.corpus, split)] for split in ("train", "validation")}
    tokenizer = prepare(texts["train"], place.recipe.tokenizer)
    with folder_in_progress(place.tokenizer) as folder:
        tokenizer.save(folder)
    counts = {split: _encode(tokenizer, documents, place.tokens / split) for split, documents in texts.items()}
    rows = compare.report(tokenizer, "\n".join(texts["validation"]), place.recipe.tokenizer.compare)
    report = place.stage("tokenizer") / "report.json"
    write_json(report, {"rows": rows})
    for row in rows:
        say(f"  {row['name']}: {row['tokens']:,} tokens of validation text, {row['bytes_per_token']:.2f} bytes a token")
    say(f"  {counts['train']:,} tokens to train on, {counts['validation']:,} to validate on")
    outputs = {"tokenizer": place.tokenizer, "tokens": place.tokens, "report": report}
    return Made(outputs, tokens=sum(counts.values()), summary={"rows": rows, "tokens": counts})


def framed(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Encode documents, each framed by the tokens for its beginning and its end."""
    return [np.concatenate(([tokenizer.bos], ids, [tokenizer.end])) for ids in tokenizer.encode_batch(texts)]


def _encode(tokenizer: Tokenizer, texts: list[str], folder: Path) -> int:
    documents = framed(tokenizer, texts)
    with folder_in_progress(folder) as temp:
        shards.write(
            temp,
            documents,
            vocabulary=tokenizer.vocabulary_size,
            tokenizer_hash=tokenizer.hash,
            num_bytes=sum(len(text.encode()) for text in texts),
        )
    return sum(map(len, documents))


def inputs(place: Place) -> dict[str, Path]:
    """Return the corpus and the tokenizers a person named, so that a change of theirs is noticed."""
    settings = place.recipe.tokenizer
    named = {"tokenizer": settings.path} | {f"compared {path}": path for path in settings.compare}
    return {"documents": place.corpus} | {name: Path(path).expanduser() for name, path in named.items() if path}


STAGE = Stage(
    name="tokenizer",
    settings=lambda recipe: {"tokenizer": recipe.tokenizer.model_dump(mode="json")},
    inputs=inputs,
    needs=lambda place: ["corpus"],
    make=make,
)
