"""The front desk's HTTP door with one webhook in it, without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from bot.http import Health, Hook, build_asgi
from bot.metrics import Metrics


@asynccontextmanager
async def open_door(path: str, hook: Hook) -> AsyncIterator[httpx.AsyncClient]:
    """A client that posts to the webhook at `path`."""

    async def health() -> Health:
        return Health(True, True, {})

    transport = httpx.ASGITransport(build_asgi(Metrics(), health, {path: hook}))
    async with httpx.AsyncClient(transport=transport, base_url="https://shop.example") as client:
        yield client
