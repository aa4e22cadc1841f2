"""From a source to a corpus on disk: cleaned, without copies, in a training and a validation part.

Writes Parquet shards and `report.json`, in which every document and character read is accounted for: kept, or dropped
for a reason. Works in memory, which suits texts up to a few gigabytes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ludus.base.console import track
from ludus.base.errors import DataError
from ludus.base.files import write_json
from ludus.corpus.clean import clean
from ludus.corpus.dedup import families, fingerprint, leaders
from ludus.corpus.document import Document, Reading
from ludus.corpus.settings import CorpusSettings
from ludus.corpus.shards import read, write
from ludus.corpus.sources import documents
from ludus.corpus.split import split

__all__ = ["build", "read"]


class _Account:
    """What became of everything read, in documents and characters."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter(documents=0, characters=0)
        self.dropped: dict[str, Counter[str]] = {}

    def drop(self, reason: str, characters: int, documents: int = 1) -> None:
        """Enter a loss; the characters that cleaning adds, if it ever does, are a negative one."""
        self.dropped.setdefault(reason, Counter()).update(documents=documents, characters=characters)


def build(settings: CorpusSettings, folder: str | Path, seed: int) -> dict[str, Any]:
    """Write the corpus into `folder` and return its report. Raises `DataError` when nothing usable is left.

    In the report, read = kept + the sum over `dropped`, in documents and in characters; what cleaning removes within
    documents stands under `cleaned` there, with 0 documents.
    """
    account, reading = _Account(), Reading()
    found = track(documents(settings, reading), "reading documents", unit="document")
    kept = list(_without_copies(_cleaned(found, settings.minimum_characters, account), account))
    groups = None
    if settings.near_duplicates is not False:
        kept = _without_near_copies(kept, account)
    else:
        groups = families([document.text for document in kept])
    if not kept:
        raise DataError(_nothing_left(account, settings))
    sides = split(kept, settings.validation_fraction, seed, groups)
    report = {
        "sources": sorted({document.source for document in kept}),
        "licences": sorted({document.licence or "not stated" for document in kept}),
        "read": dict(account.read),
        "kept": {"documents": len(kept), "characters": sum(len(document.text) for document in kept)},
        "dropped": {reason: dict(count) for reason, count in account.dropped.items()},
        "skipped_files": dict(reading.skipped),
        "split": sides.method,
        "train": write(sides.train, Path(folder), "train"),
        "validation": write(sides.validation, Path(folder), "validation"),
    }
    write_json(Path(folder) / "report.json", report)
    return report


def _cleaned(found: Iterable[Document], minimum: int, account: _Account) -> Iterator[Document]:
    for document in found:
        text = clean(document.text)
        account.read.update(documents=1, characters=len(document.text))
        if not text:
            account.drop("empty", len(document.text))
            continue
        if text != document.text:
            account.drop("cleaned", len(document.text) - len(text), documents=0)
        if len(text) < minimum:
            account.drop("too short", len(text))
        else:
            yield replace(document, text=text)


def _without_copies(found: Iterable[Document], account: _Account) -> Iterator[Document]:
    seen: set[bytes] = set()
    for document in found:
        mark = fingerprint(document.text)
        if mark in seen:
            account.drop("copy", len(document.text))
        else:
            seen.add(mark)
            yield document


def _without_near_copies(found: list[Document], account: _Account) -> list[Document]:
    kept = []
    for index, leader in enumerate(leaders([document.text for document in found])):
        if leader == index:
            kept.append(found[index])
        else:
            account.drop("near copy", len(found[index].text))
    return kept


def _nothing_left(account: _Account, settings: CorpusSettings) -> str:
    reasons = ", ".join(
        f"{count['documents']} {reason}" for reason, count in account.dropped.items() if count["documents"]
    )
    return (
        f"no text is left of the {account.read['documents']} documents read ({reasons or 'none read'}); "
        f"give more text, or lower corpus.minimum_characters={settings.minimum_characters}"
    )
