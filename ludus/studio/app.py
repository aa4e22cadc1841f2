"""The studio as an ASGI application: pages for people, `/v1` for programs, and who may knock.

Only the hosts that are named are answered, so that no web site can reach the studio under a name of its own; a request
that makes something happen must be JSON from our own pages or from a program; pages may load nothing from elsewhere.
"""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ludus.base.errors import DataError, LudusError, RunError
from ludus.studio import pages, runs
from ludus.studio.completions import Reply, failure, parse
from ludus.studio.shelf import Shelf

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
LARGEST_BODY_BYTES = 1_000_000
# A run's report carries its own style and script: it may use them, shut in a box without our origin.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def application(shelf: Shelf, *, token: str | None = None) -> Starlette:
    """Return the application; with a `token` it answers under any host, to those who bring it."""
    studio = Studio(shelf)
    routes = [
        Route("/", studio.runs),
        Route("/chat", studio.chat),
        Route("/runs/{name:path}/report.html", studio.report),
        Route("/runs/{name:path}/compare/comparison/compare.html", studio.side_by_side),
        Route("/runs/{name:path}/comparison.html", studio.comparison),
        Route("/static/{name}", studio.static),
        Route("/v1/models", studio.models),
        Route("/v1/chat/completions", studio.complete, methods=["POST"]),
    ]
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=["*"] if token else list(LOOPBACK), www_redirect=False),
        Middleware(Guard, token=token),
    ]
    handlers: dict[Any, Callable[..., Any]] = {LudusError: refuse, HTTPException: refuse_http}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


class Studio:
    """The pages and the answers; one answer at a time is drawn."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.drawing = asyncio.Lock()

    def runs(self, request: Request) -> Response:
        """List the runs."""
        folder = self.shelf.folder
        return HTMLResponse(pages.runs_page(folder, runs.scan(folder), runs.comparisons(folder)))

    def chat(self, request: Request) -> Response:
        """Show the page to chat on."""
        return HTMLResponse(pages.read("chat.html"))

    def static(self, request: Request) -> Response:
        """Send a style or a script."""
        name = request.path_params["name"]
        if name not in pages.STATIC:
            raise HTTPException(404)
        return Response(pages.read(name), media_type=pages.STATIC[name])

    def report(self, request: Request) -> Response:
        """Send a run's report."""
        known = {run.name: run.report for run in runs.scan(self.shelf.folder)}
        return page_of_run(known.get(request.path_params["name"]))

    def side_by_side(self, request: Request) -> Response:
        """Send the page that compares a run's model with the one it was tuned from, which its report links to."""
        known = {
            run.name: run.folder / "compare" / "comparison" / "compare.html" for run in runs.scan(self.shelf.folder)
        }
        return page_of_run(known.get(request.path_params["name"]))

    def comparison(self, request: Request) -> Response:
        """Send the page that compares a sweep's runs."""
        return page_of_run(runs.comparisons(self.shelf.folder).get(request.path_params["name"]))

    def models(self, request: Request) -> Response:
        """List the models."""
        found = [
            {"id": name, "object": "model", "created": int(runs.describes(path).stat().st_mtime), "owned_by": "ludus"}
            for name, path in self.shelf.names().items()
        ]
        return JSONResponse({"object": "list", "data": found})

    async def complete(self, request: Request) -> Response:
        """Answer a conversation, at once or as a stream of events."""
        asked = parse(await body_of(request))
        name, path = await to_thread.run_sync(self.shelf.find, asked.model)
        async with self.drawing:
            speaker = await to_thread.run_sync(self.shelf.load, path)
        reply = Reply(name, await to_thread.run_sync(asked.answer, speaker))
        if asked.stream:
            return StreamingResponse(self.events(reply, asked.usage), media_type="text/event-stream")
        async for _ in self.pieces(reply):
            if await request.is_disconnected():
                break
        return JSONResponse(reply.whole())

    async def events(self, reply: Reply, usage: bool) -> AsyncIterator[str]:
        """Yield the events of a streamed answer."""
        yield reply.first()
        async for piece in self.pieces(reply):
            yield reply.piece(piece)
        for closing in reply.last(usage):
            yield closing

    async def pieces(self, reply: Reply) -> AsyncIterator[str]:
        """Draw an answer in a thread, alone, and yield its text; whoever leaves stops it."""
        async with self.drawing:
            drawn = iter(reply.answer)
            while (piece := await to_thread.run_sync(next, drawn, None)) is not None:
                yield piece


async def body_of(request: Request) -> Any:
    """Return the JSON a request carries. Raises HTTPException 415 for another type and 413 for too much of it."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be application/json")
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > LARGEST_BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {LARGEST_BODY_BYTES:,} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise DataError("the body is not valid JSON") from None


def page_of_run(path: Path | None) -> Response:
    """Send a page that a run has written, in its box."""
    if path is None or not path.is_file():
        raise HTTPException(404)
    return FileResponse(path, headers={"Content-Security-Policy": REPORT_POLICY})


def refuse(request: Request, error: Exception) -> Response:
    """Say in OpenAI's form what was wrong."""
    return JSONResponse(failure(str(error)), 404 if isinstance(error, RunError) else 400)


def refuse_http(request: Request, error: Exception) -> Response:
    """Say in OpenAI's form which HTTP rule was broken."""
    assert isinstance(error, HTTPException)
    return JSONResponse(failure(error.detail), error.status_code, headers=error.headers)


class Guard:
    """Middleware: asks for the token if there is one, refuses other sites' requests, and adds the headers."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        refusal: Response | None = None
        if self.token and not allowed(request.headers.get("authorization", ""), self.token):
            challenge = {"WWW-Authenticate": 'Basic realm="ludus studio: any name, the token as password"'}
            refusal = JSONResponse(failure("the token is missing or wrong"), 401, headers=challenge)
        elif "origin" in request.headers and not same_site(request):
            refusal = JSONResponse(failure("requests from other sites are refused"), 403)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in HEADERS.items() if k.lower().encode() not in present),
                ]
            await send(message)

        await (refusal or self.app)(scope, receive, with_headers)


def same_site(request: Request) -> bool:
    """Tell whether a request comes from a page of this very host and port."""
    return request.headers["origin"].partition("://")[2] == request.headers.get("host")


def allowed(authorization: str, token: str) -> bool:
    """Tell whether the token was brought, as a program does (Bearer) or a browser (Basic)."""
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:
            return False
    return secrets.compare_digest(value.encode(), token.encode())
