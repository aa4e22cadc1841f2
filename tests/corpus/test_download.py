import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ludus.base.errors import ConfigError, DataError, NetworkError
from ludus.corpus.download import download
from ludus.corpus.settings import CorpusSettings
from ludus.corpus.sources import documents

CONTENT = b"Text from the web.\n"


class _Web(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        _Web.asked += 1
        self.send_response(404 if "absent" in self.path else 200)
        self.send_header("Content-Length", str(len(CONTENT) + 100 * ("short" in self.path)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, format, *args):
        pass


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    _Web.asked = 0
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_fetched_once_and_read_with_its_address(web: str):
    settings = CorpusSettings(url=f"{web}/a/tale.txt?x=1", sha256=hashlib.sha256(CONTENT).hexdigest().upper())
    for _ in range(2):
        (document,) = documents(settings)
        assert (document.text, document.url, document.source) == (CONTENT.decode(), settings.url, "tale")
    assert _Web.asked == 1


def test_what_is_not_the_expected_file_is_not_kept(web: str, tmp_path: Path):
    with pytest.raises(DataError, match=r"corpus\.sha256 says 0000"):
        download(f"{web}/tale.txt", "0" * 64)
    assert not list(tmp_path.rglob("tale.txt"))
    download(f"{web}/tale.txt", None)
    with pytest.raises(DataError, match="to fetch it again"):
        download(f"{web}/tale.txt", "0" * 64)


@pytest.mark.parametrize("path", ["/absent.txt", "/short.txt"])
def test_a_failed_download_says_how_to_go_on_without_it(web: str, path: str, tmp_path: Path):
    with pytest.raises(NetworkError, match=r"download it by hand and set corpus\.path=FILE") as caught:
        download(web + path, None)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.txt"))


def test_a_server_that_is_not_there_is_a_network_error():
    with pytest.raises(NetworkError, match="could not be fetched"):
        download("http://127.0.0.1:9/tale.txt", None)


def test_only_web_addresses_are_fetched():
    for url in ("file:///etc/hosts", "tale.txt", "https:///tale.txt"):
        with pytest.raises(ConfigError, match=r"corpus\.url"):
            download(url, None)
