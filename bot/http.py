"""One ASGI app: what is well (/health), what was counted (/metrics), and the chat page at "/" where it is on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bot.errors import ConfigError
from bot.metrics import Metrics

log = structlog.get_logger(__name__)

SILENCE_S = 120.0
"""A platform not heard of for so long is not well; the longest poll or ping takes a minute at most."""
MAX_BODY = 1_000_000
"""Bytes of one event."""
GRACE_S = 1
"""Seconds that open streams of the chat page get when the program stops."""

# Nothing from outside is ever loaded, whatever a text on the page holds. Gradio's page needs the three unsafe ones.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'self'; object-src 'none'"
)


Hook = Callable[[Mapping[str, str], bytes], Awaitable[tuple[int, str]]]
"""Takes the headers and the body of what a platform posts, and gives the status and the text to answer with."""


@dataclass(frozen=True, slots=True)
class Health:
    """What is well just now; an engine that keeps failing is not. `contacts`: the time.time() of each platform's last
    exchange, None before the first."""

    database: bool
    engine: bool
    contacts: Mapping[str, float | None]

    @property
    def is_well(self) -> bool:
        return self.database and self.engine and all(map(_is_recent, self.contacts.values()))

    def to_json(self) -> dict[str, object]:
        """Each platform's contact in seconds ago."""
        ago = {name: None if at is None else round(time.time() - at, 1) for name, at in self.contacts.items()}
        return {"well": self.is_well, "database": self.database, "engine": self.engine, "last_contact_s": ago}


def _is_recent(contact: float | None) -> bool:
    return contact is not None and time.time() - contact < SILENCE_S


def build_asgi(metrics: Metrics, health: Callable[[], Awaitable[Health]], hooks: Mapping[str, Hook]) -> Starlette:
    """/health answers 200 when all is well, else 503; /metrics is Prometheus' text format; `hooks` by their paths."""

    async def show_health(request: Request) -> Response:
        state = await health()
        return JSONResponse(state.to_json(), status_code=200 if state.is_well else 503)

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def receiving(hook: Hook) -> Callable[[Request], Awaitable[Response]]:
        async def receive(request: Request) -> Response:
            body = await _body(request)
            status, text = (413, "") if body is None else await hook(request.headers, body)
            return Response(text, status, media_type="application/json" if text.startswith("{") else "text/plain")

        return receive

    routes = [Route("/health", show_health), Route("/metrics", show_metrics)]
    routes += [Route(path, receiving(hook), methods=["POST"]) for path, hook in hooks.items()]
    return Starlette(routes=routes, middleware=[Middleware(_Shielded)])


async def _body(request: Request) -> bytes | None:
    """What was posted; None when it is more than any platform sends."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return body


class _Shielded:
    """Adds the headers that keep a page from loading, or telling, anything elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, with_headers)


class _Server(uvicorn.Server):
    """Leaves the signals to the program."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(app: ASGIApp, host: str, port: int, listening: Callable[[str], None] = lambda url: None) -> None:
    """Serve until cancelled. `listening` is told the address. Raises ConfigError when it cannot be had."""
    with _bind(host, port) as bound:
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_S)
        server = _Server(config)
        url = f"http://{_bracketed(host)}:{bound.getsockname()[1]}"
        log.info("listening", url=url)
        listening(url)
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            server.should_exit = True
            await serving
            raise


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"web.host {host}, web.port {port}: {error.strerror or error}; stop what uses it or choose another"
        ) from None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
