"""Where documents come from: files, a data set of the hub, one file from the web, or this Python's documentation."""

import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ludus.base.errors import ConfigError, DataError
from ludus.corpus.document import Document, Reading
from ludus.corpus.settings import CorpusSettings


def documents(settings: CorpusSettings, reading: Reading | None = None) -> Iterator[Document]:
    """Yield the documents the settings name, up to their limits; what is passed over is counted in `reading`."""
    reading = Reading() if reading is None else reading
    if settings.sha256 and not settings.url:
        raise ConfigError("corpus.sha256 checks a download; set corpus.url too, or leave it out")
    yield from _limited(_found(settings, reading), settings, reading)


def paths_of(settings: CorpusSettings) -> list[Path]:
    """Return the files and folders the settings name."""
    named = settings.path if isinstance(settings.path, list) else [settings.path] if settings.path else []
    return [Path(path).expanduser() for path in named]


def _found(settings: CorpusSettings, reading: Reading) -> Generator[Document, None, None]:
    """Read where the settings say; a path given beside a recipe's hub or url stands for it, had by hand."""
    source, licence = settings.source or "", settings.licence or ""
    if settings.path:
        from ludus.corpus.files import file_documents

        for path in paths_of(settings):
            yield from file_documents(path, source, licence, reading, column=settings.text_column)
    elif settings.hub:
        from ludus.corpus.hub import hub_documents

        yield from hub_documents(settings, reading)
    elif settings.url:
        from ludus.corpus.download import download
        from ludus.corpus.files import file_documents

        file = download(settings.url, settings.sha256)
        name = source or PurePosixPath(urlsplit(settings.url).path).stem
        found = file_documents(file, name, licence, reading, column=settings.text_column)
        yield from (_from(document, settings.url) for document in found)
    else:
        yield from _own_documentation(source, licence)


def _limited(found: Generator[Document, None, None], settings: CorpusSettings, reading: Reading) -> Iterator[Document]:
    """Stop at the limits; the document that reaches one is the last."""
    with closing(found):  # what is read from knows then how far it was read
        yield from _until(found, settings, reading)


def _until(found: Iterator[Document], settings: CorpusSettings, reading: Reading) -> Iterator[Document]:
    size = 0
    for count, document in enumerate(found, 1):
        yield document
        if settings.limit_documents and count >= settings.limit_documents:
            reading.notes.append(f"stopped after {count:,} documents (corpus.limit_documents)")
            return
        if settings.limit_bytes:
            size += len(document.text.encode("utf-8", "replace"))
            if size >= settings.limit_bytes:
                reading.notes.append(f"stopped after {size:,} bytes of text (corpus.limit_bytes)")
                return


def _from(document: Document, url: str) -> Document:
    return document if document.url else replace(document, url=url)


def _own_documentation(source: str, licence: str) -> Iterator[Document]:
    from ludus.corpus.interpreter import LICENCE, SOURCE, interpreter_documents

    count = 0
    for document in interpreter_documents(source or SOURCE.format(*sys.version_info), licence or LICENCE):
        count += 1
        yield document
    if not count:
        raise DataError("this Python came without its library's source; set corpus.path to a file or folder of text")
