"""Serving the studio: which address may be listened on, and the server that does."""

import socket
from contextlib import ExitStack
from pathlib import Path

import uvicorn

from ludus.base.console import say
from ludus.base.errors import ConfigError, RunError
from ludus.studio.app import LOOPBACK, application
from ludus.studio.shelf import Shelf

SHORTEST_TOKEN = 16
TOKEN_VARIABLE = "LUDUS_STUDIO_TOKEN"
CLOSING_SECONDS = 2


def serve(folder: Path, model: Path | None, host: str, port: int, token: str | None) -> None:
    """Serve until interrupted.

    Raises ConfigError for a host beyond this machine without a token, RunError for an address that is taken or no
    model's path.
    """
    check(host, token)
    app = application(Shelf(folder, model), token=token)
    listening = listen(host, port)
    address, port = listening.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    say(f"ludus studio: http://{shown}:{port}  (runs in {folder}; Ctrl-C closes it)")
    config = uvicorn.Config(
        app, log_level="warning", server_header=False, timeout_graceful_shutdown=CLOSING_SECONDS, lifespan="off"
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()
    say("closed")


def check(host: str, token: str | None) -> None:
    """Raise ConfigError unless the host is this machine's own, or a token guards it."""
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise ConfigError(f"{TOKEN_VARIABLE} is shorter than {SHORTEST_TOKEN} characters; take a longer random one")
    if host not in LOOPBACK and token is None:
        raise ConfigError(
            f"--host {host} would open the studio to others: set {TOKEN_VARIABLE} to a secret of "
            f"{SHORTEST_TOKEN} characters or more, which they must bring, or leave --host out"
        )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises RunError if the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as closing:
            listening = closing.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()
            closing.pop_all()
            return listening
    except OSError as problem:
        raise RunError(f"cannot listen on {host}:{port}: {problem.strerror}; choose another with --port") from None
