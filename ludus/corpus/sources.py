"""Where documents come from: this Python's documentation, files, or one file from the web."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ludus.base.errors import ConfigError, DataError
from ludus.corpus.document import Document
from ludus.corpus.download import download
from ludus.corpus.files import file_documents
from ludus.corpus.interpreter import LICENCE, SOURCE, interpreter_documents
from ludus.corpus.settings import CorpusSettings


def documents(settings: CorpusSettings, skipped: Counter[str] | None = None) -> Iterator[Document]:
    """Yield the documents the settings name; files passed over are counted in `skipped` by their kind."""
    skipped = Counter() if skipped is None else skipped
    source, licence = settings.source or "", settings.licence or ""
    if settings.sha256 and not settings.url:
        raise ConfigError("corpus.sha256 checks a download; set corpus.url too, or leave it out")
    if settings.url and not settings.path:  # a path given beside a recipe's url is that file, had by hand
        file = download(settings.url, settings.sha256)
        name = source or PurePosixPath(urlsplit(settings.url).path).stem
        yield from (_from(document, settings.url) for document in file_documents(file, name, licence, skipped))
    elif settings.path:
        yield from file_documents(Path(settings.path).expanduser(), source, licence, skipped)
    else:
        yield from _own_documentation(source, licence)


def _from(document: Document, url: str) -> Document:
    return document if document.url else replace(document, url=url)


def _own_documentation(source: str, licence: str) -> Iterator[Document]:
    count = 0
    for document in interpreter_documents(source or SOURCE.format(*sys.version_info), licence or LICENCE):
        count += 1
        yield document
    if not count:
        raise DataError("this Python came without its library's source; set corpus.path to a file or folder of text")
