"""An engine that says what a test tells it to: for tests about what happens around the model, not in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from bot.errors import EngineError
from engine.types import LabelRole, LabelScores, OnText, Reply, StopReason, TextRole, Turn


class ScriptedEngine:
    """Judges by `negative(text)`, answers with `answer(turns)`; `failures` requests raise first."""

    def __init__(
        self,
        negative: Callable[[str], float] = lambda text: 0.95 if "差" in text or "awful" in text else 0.05,
        answer: Callable[[Sequence[Turn]], str] = lambda turns: f"answer to: {turns[-1].text}",
    ) -> None:
        self.negative = negative
        self.answer = answer
        self.failures = 0
        self.hold: asyncio.Event | None = None
        self.asked: list[tuple[str, object]] = []
        self.forgot: list[str] = []

    alive = True

    async def label(self, role: LabelRole, text: str) -> LabelScores:
        self.asked.append((role.name, text))
        self._maybe_fail()
        negative = self.negative(text)
        return LabelScores({role.labels[0]: 1 - negative, role.labels[1]: negative})

    async def write(
        self, role: TextRole, turns: Sequence[Turn], on_text: OnText | None = None, conversation: str = ""
    ) -> Reply:
        self.asked.append((role.name, tuple(turns)))
        if self.hold is not None:
            await self.hold.wait()
        self._maybe_fail()
        text = self.answer(turns)
        if on_text is not None:
            on_text(text)
        return Reply(text, len(text), StopReason.END, 0.01, 0.02)

    async def forget(self, conversation: str) -> None:
        self.forgot.append(conversation)

    async def close(self) -> None:
        self.alive = False

    def _maybe_fail(self) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise EngineError("the model raised")
