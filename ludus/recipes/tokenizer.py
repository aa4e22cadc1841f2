"""Tokenizer: train a vocabulary on the training text, compare it with others, and write the corpus as tokens.

Documents pass through as a stream, a batch of them held at a time.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ludus.base.console import say, track
from ludus.base.files import folder_in_progress, read_json, write_json
from ludus.corpus.build import domain_of, read
from ludus.corpus.document import Document
from ludus.data import shards
from ludus.recipes.place import Made, Place, Stage
from ludus.runs.manifest import Manifest
from ludus.text import compare
from ludus.text.find import find, repository
from ludus.text.tokenizer import Tokenizer
from ludus.text.train import prepare, sampled

SPLITS = ("train", "validation")
_BATCH_CHARACTERS = 1_000_000  # encoded at a time
_COMPARED_CHARACTERS = 4_000_000  # of validation text


def make(place: Place, manifest: Manifest) -> Made:
    """Train the tokenizer and encode both splits; each document is framed by its beginning and end tokens.

    With a mixture each domain has token shards of its own, `tokens/NAME/train`, and `tokens/train` is all of them.
    """
    settings = place.recipe.tokenizer
    tokenizer = prepare(_training_text(place), settings)
    with folder_in_progress(place.tokenizer) as folder:
        tokenizer.save(folder)
    with folder_in_progress(place.tokens) as folder:
        counts = {
            split: encode(
                tokenizer, track(read(place.corpus, split), f"tokens to {split}", unit="document"), folder, split
            )
            for split in SPLITS
        }
    rows = compare.report(tokenizer, _beginning(read(place.corpus, "validation")), settings.compare)
    report = place.stage("tokenizer") / "report.json"
    write_json(report, {"rows": rows})
    for row in rows:
        say(f"  {row['name']}: {row['tokens']:,} tokens of validation text, {row['bytes_per_token']:.2f} bytes a token")
    for name in counts["train"]:
        of = f" of {name}" if name else ""
        say(f"  {counts['train'][name]:,} tokens{of} to train on, {counts['validation'][name]:,} to validate on")
    totals = {split: sum(count.values()) for split, count in counts.items()}
    outputs = {"tokenizer": place.tokenizer, "tokens": place.tokens, "report": report}
    return Made(outputs, tokens=sum(totals.values()), summary={"rows": rows, "tokens": totals})


def encode(tokenizer: Tokenizer, documents: Iterable[Document], folder: Path, split: str) -> dict[str, int]:
    """Write documents as token shards, by domain where they have one, and return the count of tokens by domain.

    The shards lie in `folder/SPLIT`, or in `folder/DOMAIN/SPLIT`, to which those of `folder/SPLIT` then refer.
    """
    writers: dict[str, shards.Writer] = {}
    for batch in _batches(documents):
        framed_batch = framed(tokenizer, [document.text for document in batch])
        for document, tokens in zip(batch, framed_batch, strict=True):
            domain = domain_of(document)
            if domain not in writers:
                size, hashed = tokenizer.vocabulary_size, tokenizer.hash
                writers[domain] = shards.Writer(folder / domain / split, vocabulary=size, tokenizer_hash=hashed)
            writers[domain].append(tokens, len(document.text.encode()))
    if not writers:
        writers[""] = shards.Writer(folder / split, vocabulary=tokenizer.vocabulary_size, tokenizer_hash=tokenizer.hash)
    counts = {domain: writer.close()["tokens"] for domain, writer in writers.items()}
    if "" not in counts:
        shards.link(folder / split, [folder / domain / split for domain in counts])
    return counts


def framed(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Encode documents, each framed by the tokens for its beginning and its end."""
    ends = [tokenizer.bos], [tokenizer.end]
    return [
        np.concatenate((ends[0], ids, ends[1]), dtype=ids.dtype, casting="unsafe")
        for ids in tokenizer.encode_batch(texts)
    ]


def _training_text(place: Place) -> Iterator[str]:
    """Yield the training text: a bpe vocabulary sees an even sample of what is more than its limit."""
    settings = place.recipe.tokenizer
    texts = (document.text for document in read(place.corpus, "train"))
    there = read_json(place.corpus / "report.json")["train"]["bytes"]
    if settings.kind == "bpe" and there > settings.sample_bytes and not settings.path:
        share = settings.sample_bytes / there
        say(f"  trained on {share:.1%} of the text, evenly (tokenizer.sample_bytes={settings.sample_bytes:,})")
        return sampled(texts, share)
    return texts


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _beginning(documents: Iterable[Document]) -> str:
    """Return the first documents' text, cut where it is more than vocabularies need to be compared."""
    texts: list[str] = []
    characters = 0
    for document in documents:
        texts.append(document.text)
        characters += len(document.text)
        if characters >= _COMPARED_CHARACTERS:
            break
    return "\n".join(texts)[:_COMPARED_CHARACTERS]


def inputs(place: Place) -> dict[str, Path]:
    """Return the corpus and the tokenizers a person named, so that a change of theirs is noticed."""
    settings = place.recipe.tokenizer
    named = {"tokenizer": settings.path} | {f"compared {path}": path for path in settings.compare}
    files = {name: find(path) for name, path in named.items() if path and not repository(path)}
    return {"documents": place.corpus} | files


STAGE = Stage(
    name="tokenizer",
    settings=lambda recipe: {"tokenizer": recipe.tokenizer.model_dump(mode="json")},
    inputs=inputs,
    needs=lambda place: ["corpus"],
    make=make,
)
