"""DRAFT: one ASGI app: health, metrics, the web page."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bot.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Health:
    database: bool
    engine: bool
    contacts: Mapping[str, float | None]


def build_asgi(
    metrics: Metrics, health: Callable[[], Awaitable[Health]], page: Any = None, auth: tuple[str, str] | None = None
) -> Starlette:
    async def show_health(request: Request) -> Response:
        state = await health()
        return JSONResponse({"database": state.database, "engine": state.engine})

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.render(), media_type="text/plain")

    return Starlette(routes=[Route("/health", show_health), Route("/metrics", show_metrics)])


async def serve(app: Any, host: str, port: int) -> None:
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_config=None, lifespan="on"))
    await server._serve()
