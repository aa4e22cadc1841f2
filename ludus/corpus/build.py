"""From sources to a corpus on disk: cleaned, without copies, in a training and a validation part.

Writes Parquet shards and `report.json`, in which every document and character read is accounted for: kept, or dropped
for a reason. Documents pass through as a stream. What is held for each of them is 16 bytes of a hash to find copies,
16 to choose a side, and about 4 KB where near copies are looked for.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ludus.base.console import track
from ludus.base.errors import DataError
from ludus.base.files import write_json
from ludus.corpus.clean import clean, encodable
from ludus.corpus.dedup import Index, Kin, fingerprint
from ludus.corpus.document import Document, Reading
from ludus.corpus.settings import CorpusSettings
from ludus.corpus.shards import Writer, read
from ludus.corpus.shelf import Shelf
from ludus.corpus.sources import documents
from ludus.corpus.split import Entries, Split, split

__all__ = ["build", "domain_of", "read"]

_KIN_DOCUMENTS = 50_000  # beyond these a near copy on the other side is not looked for where near copies are kept


def domain_of(document: Document) -> str:
    """Return the domain of a mixture that a document was read for; "" where there is no mixture."""
    return str(document.metadata.get("domain", ""))


class _Account:
    """What became of everything read, in documents and characters."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter(documents=0, characters=0)
        self.kept: Counter[str] = Counter(documents=0, characters=0)
        self.dropped: dict[str, Counter[str]] = {}
        self.sources: set[str] = set()
        self.licences: set[str] = set()

    def drop(self, reason: str, characters: int, documents: int = 1) -> None:
        """Enter a loss; the characters that cleaning adds, if it ever does, are a negative one."""
        self.dropped.setdefault(reason, Counter()).update(documents=documents, characters=characters)

    def keep(self, document: Document) -> None:
        """Enter a document that stays."""
        self.kept.update(documents=1, characters=len(document.text))
        self.sources.add(document.source)
        self.licences.add(document.licence or "not stated")


def build(
    settings: CorpusSettings, folder: str | Path, seed: int, domains: Mapping[str, CorpusSettings] | None = None
) -> dict[str, Any]:
    """Write the corpus into `folder` and return its report. Raises `DataError` when nothing usable is left.

    With `domains`, documents are read for each of them in turn, copies are looked for across all, and each domain has
    its own validation part. In the report, read = kept + the sum over `dropped`, in documents and in characters; what
    cleaning removes within documents stands under `cleaned` there, with 0 documents.
    """
    folder, account, reading = Path(folder), _Account(), Reading()
    shelves = {name: _Side(folder / f".{name or 'all'}", seed) for name in domains or [""]}
    found = track(_found(settings, domains, reading), "reading documents", unit="document")
    kept = _without_copies(_cleaned(found, settings, account), account)
    kin: Kin | None = None
    if settings.near_duplicates is not False:
        kept = _without_near_copies(kept, account)
    else:
        kin, kept = _with_kin(kept, reading)
    for document in kept:
        account.keep(document)
        shelves[domain_of(document)].append(document, account.kept["documents"] - 1)
    empty = [name for name, shelf in shelves.items() if not len(shelf.shelf)]
    if empty:
        raise DataError(_nothing_left(account, settings, empty[0]))
    groups = kin.roots() if kin is not None and len(kin) <= _KIN_DOCUMENTS else None
    splits = {name: shelf.split(settings, groups) for name, shelf in shelves.items()}
    report = {
        "sources": sorted(account.sources),
        "licences": sorted(account.licences),
        "read": dict(account.read),
        "kept": dict(account.kept),
        "dropped": {reason: dict(count) for reason, count in account.dropped.items()},
        "skipped_files": dict(reading.skipped),
        "broken_characters": dict(reading.broken),
        "notes": reading.notes,
        "split": "; ".join(f"{name}: {each.method}" if name else each.method for name, each in splits.items()),
    } | _write(folder, shelves, splits)
    write_json(folder / "report.json", report)
    return report


class _Side:
    """One domain's documents until they are split, with their numbers in the whole."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.shelf, self.entries, self.numbers = Shelf(folder), Entries(seed), list[int]()

    def append(self, document: Document, number: int) -> None:
        self.shelf.append(document)
        self.entries.add(document)
        self.numbers.append(number)

    def split(self, settings: CorpusSettings, groups: list[int] | None) -> Split:
        self.shelf.close()
        here = [groups[number] for number in self.numbers] if groups else None
        fraction = settings.validation_fraction
        return split(self.entries, self.shelf, fraction, groups=here, exact=settings.verbatim)


def _found(
    settings: CorpusSettings, domains: Mapping[str, CorpusSettings] | None, reading: Reading
) -> Iterator[Document]:
    if not domains:
        yield from documents(settings, reading)
    for name, own in (domains or {}).items():
        for document in documents(own, reading):
            yield replace(document, metadata=document.metadata | {"domain": name})


def _write(folder: Path, shelves: Mapping[str, _Side], splits: Mapping[str, Split]) -> dict[str, Any]:
    """Write both parts, domain after domain, and return their sizes."""
    sizes: dict[str, Any] = {}
    of_domains: dict[str, dict[str, Counter[str]]] = {}
    with Writer(folder, "train") as train, Writer(folder, "validation") as validation:
        writers = {"train": train, "validation": validation}
        for name, shelf in shelves.items():
            counts = of_domains.setdefault(name, {side: Counter() for side in writers})
            for side, document in splits[name].sides(shelf.shelf):
                writers[side].append(document)
                counts[side].update(documents=1, characters=len(document.text))
            shelf.shelf.clear()
        sizes |= {side: writer.close() for side, writer in writers.items()}
    if "" not in of_domains:
        sizes["domains"] = {
            name: {side: dict(count) for side, count in counts.items()} for name, counts in of_domains.items()
        }
    return sizes


def _cleaned(found: Iterable[Document], settings: CorpusSettings, account: _Account) -> Iterator[Document]:
    for document in found:
        text = encodable(document.text) if settings.verbatim else clean(document.text)
        account.read.update(documents=1, characters=len(document.text))
        if not text.strip():
            account.drop("empty", len(document.text))
            continue
        if text != document.text:
            account.drop("cleaned", len(document.text) - len(text), documents=0)
        if len(text) < settings.minimum_characters:
            account.drop("too short", len(text))
        else:
            yield document if text == document.text else replace(document, text=text)


def _without_copies(found: Iterable[Document], account: _Account) -> Iterator[Document]:
    seen: set[bytes] = set()
    for document in found:
        mark = fingerprint(document.text)
        if mark in seen:
            account.drop("copy", len(document.text))
        else:
            seen.add(mark)
            yield document


def _without_near_copies(found: Iterable[Document], account: _Account) -> Iterator[Document]:
    index, passing = Index(), deque[Document]()
    for number, (_, alike) in enumerate(index.compared(_texts(found, passing))):
        document = passing.popleft()
        if alike:
            account.drop("near copy", len(document.text))
        else:
            index.enter(number)
            yield document


def _with_kin(found: Iterable[Document], reading: Reading) -> tuple[Kin, Iterator[Document]]:
    """Note which documents are near copies of each other, so that they stay on one side; up to a number of them."""
    kin, passing = Kin(), deque[Document]()

    def passed() -> Iterator[Document]:
        documents = iter(found)
        for _ in kin.grouped(_texts(documents, passing)):
            yield passing.popleft()
            if len(kin) > _KIN_DOCUMENTS:
                reading.notes.append(
                    f"more than {_KIN_DOCUMENTS:,} documents: near copies of those held out were not looked for"
                )
                kin.forget()
                yield from passing
                yield from documents
                return

    return kin, passed()


def _texts(found: Iterable[Document], passing: deque[Document]) -> Iterator[str]:
    for document in found:
        passing.append(document)
        yield document.text


def _nothing_left(account: _Account, settings: CorpusSettings, domain: str) -> str:
    reasons = ", ".join(
        f"{count['documents']} {reason}" for reason, count in account.dropped.items() if count["documents"]
    )
    where = f" for {domain}" if domain else ""
    return (
        f"no text is left{where} of the {account.read['documents']} documents read ({reasons or 'none read'}); "
        f"give more text, or lower corpus.minimum_characters={settings.minimum_characters}"
    )
