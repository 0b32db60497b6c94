"""The real program in a process of its own: started, watched, stopped and killed by tests."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE_S = 60.0
"""For a start: importing torch on a busy machine takes a while."""

CONFIG = """
[engine]
model = "bundled"
{engine}
[escalation]
channel = "{channel}"
threshold = 1.0
[web]
enabled = false
port = 0
[log]
level = "DEBUG"
format = "json"
{sections}
"""


class Program:
    """`frontdesk run` with the bundled model, cards in `channel` for those alone who ask for a human, and `sections` of
    the test's own; its log, at DEBUG, goes to `log`. It may get `options`."""

    def __init__(
        self,
        folder: Path,
        channel: str,
        sections: str,
        secrets: Mapping[str, str],
        *options: str,
        engine: str = "max_new_tokens = 48",
    ) -> None:
        self.folder = folder
        self.log = folder / "log.jsonl"
        self.config = folder / "config.toml"
        self.config.write_text(CONFIG.format(engine=engine, channel=channel, sections=sections), encoding="utf-8")
        self._secrets = dict(secrets)
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()
        assert "CANARY" not in self.said(), "a token reached the log"

    async def start(self) -> None:
        """Start, and wait until the platforms are served."""
        served = self._served()
        environment = {**os.environ, **self._secrets, "HF_HUB_OFFLINE": "1"}
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bot",
                "run",
                "--config",
                str(self.config),
                *self._options,
                stdout=log,
                stderr=log,
                env=environment,
            )
        async with asyncio.timeout(PATIENCE_S):
            while self._served() == served:
                if self._process.returncode is not None:
                    raise AssertionError(f"the program ended with {self._process.returncode}:\n{self.said()}")
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """As the kernel does it: no handler runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def terminate(self) -> int:
        """Ask it to end, as a service manager does; returns its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()

    async def logs(self, words: str) -> None:
        """Wait until the log holds `words`."""
        async with asyncio.timeout(PATIENCE_S):
            while words not in self.said():  # noqa: ASYNC110 - another process's file
                await asyncio.sleep(0.01)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What its database holds, read as a second process."""
        with sqlite3.connect(f"file:{self.folder / 'frontdesk.db'}?mode=ro", uri=True) as database:
            return database.execute(query).fetchall()

    def _served(self) -> int:
        return self.said().count('"event": "serving"')
