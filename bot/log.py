"""Logging: structlog on top of the standard library, so that libraries' lines take the same way; secrets never pass."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import structlog

HIDDEN = "[secret]"
NOISY = (
    *("httpx", "httpx2", "httpcore", "httpcore2", "openai", "telegram", "slack_sdk", "slack_bolt", "aiohttp"),
    *("urllib3", "asyncio", "gradio", "alembic.runtime.plugins", "procrastinate"),
)


class Redactor(logging.Formatter):
    """Renders a record with another formatter and takes every known secret out of the result, tracebacks included."""

    def __init__(self, inner: logging.Formatter, secrets: Sequence[str]) -> None:
        super().__init__()
        self._inner = inner
        escaped = [json.dumps(secret, ensure_ascii=False)[1:-1] for secret in secrets]
        self._secrets = sorted(filter(None, {*secrets, *escaped}), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        line = self._inner.format(record)
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN)
        return line


def formatter(style: str, secrets: Sequence[str]) -> logging.Formatter:
    """`style` is "json" or "console"."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if style == "json":
        render: list[Any] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    else:  # plain tracebacks: the pretty ones print local variables, and with them what customers wrote
        plain = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    inner = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )
    return Redactor(inner, secrets)


def set_up(level: str, style: str, secrets: Sequence[str], stream: TextIO | None = None) -> None:
    """Send every line of the process to `stream` (standard error), once. `style` "auto": console on a terminal."""
    target = stream or sys.stderr
    if style == "auto":
        style = "console" if target.isatty() else "json"
    handler = logging.StreamHandler(target)
    handler.setFormatter(formatter(style, secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in NOISY:  # httpx prints whole URLs, bot token included, at INFO
        logging.getLogger(name).setLevel(logging.NOTSET if level == "DEBUG" else logging.WARNING)
    use_structlog()


def use_structlog() -> None:
    """Route structlog into the standard library's handlers."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
