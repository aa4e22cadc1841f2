"""One file from the web, fetched once and kept under the cache folder, checked against its hash.

What was fetched before is used again without a network.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ludus.base.console import Meter
from ludus.base.errors import ConfigError, DataError, NetworkError
from ludus.base.files import folder_in_progress, sha256_file, writing

_TIMEOUT_SECONDS = 60
_PART_BYTES = 1 << 18


def cache_folder() -> Path:
    """Return where downloads are kept: `ludus` under XDG_CACHE_HOME, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ludus"


def download(url: str, sha256: str | None) -> Path:
    """Return the local copy of a file, fetching it if need be.

    Raises `NetworkError` when it cannot be fetched and `DataError` when it is not the file the hash names.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.netloc:
        raise ConfigError(f"corpus.url is {url!r}; it must begin with https:// (a local file goes into corpus.path)")
    folder = cache_folder() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    name = PurePosixPath(parts.path).name or "download"
    if not (folder / name).exists():
        with folder_in_progress(folder) as temp:
            _fetch(url, temp / name)
            _check(temp / name, url, sha256)
    _check(folder / name, url, sha256)
    return folder / name


def _check(file: Path, url: str, sha256: str | None) -> None:
    found = sha256_file(file)
    if sha256 and found != sha256.lower():
        raise DataError(
            f"what {url} gave is not the expected file: its sha256 is {found}, corpus.sha256 says {sha256.lower()}; "
            f"correct the one that is wrong, or remove {file.parent} to fetch it again"
        )


def _fetch(url: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer, target.open("wb") as file:
            for part in _parts(answer):
                with writing(target):  # a full disk is not the network's fault
                    file.write(part)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the answer, and holds the connection
        reason = str(getattr(error, "reason", "") or error or type(error).__name__).splitlines()[0]
        raise NetworkError(
            f"{url} could not be fetched ({reason}); download it by hand and set corpus.path=FILE instead of corpus.url"
        ) from None


def _parts(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the body; a connection that ends early is an error, not a shorter file."""
    expected = answer.length
    received = 0
    with Meter("download", expected, unit="byte") as meter:
        while part := answer.read(_PART_BYTES):
            received += len(part)
            meter.update(received)
            yield part
    if expected is not None and received < expected:
        raise http.client.IncompleteRead(b"", expected - received)
