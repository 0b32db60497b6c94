"""How fast a platform lets us write: a message too soon is put off before the platform has to refuse it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `messages` in any `seconds`."""

    messages: int
    seconds: float


class Pace:
    """Counts what is sent, by name of what is limited (a chat, the whole bot). Not for several threads at once."""

    def __init__(self) -> None:
        self._sent: dict[tuple[str, Limit], deque[float]] = {}

    def wait(self, limits: Sequence[tuple[str, Limit]], now: float) -> float:
        """0 when a message that falls under all `limits` may go now, which counts it; else the seconds to wait."""
        self._forget(now)
        seconds = max((self._left(each, now) for each in limits), default=0.0)
        if seconds == 0:
            for each in limits:
                self._sent.setdefault(each, deque()).append(now)
        return seconds

    def _left(self, key: tuple[str, Limit], now: float) -> float:
        sent, limit = self._sent.get(key, ()), key[1]
        return sent[-limit.messages] + limit.seconds - now if len(sent) >= limit.messages else 0.0

    def _forget(self, now: float) -> None:
        for key, sent in list(self._sent.items()):
            while sent and sent[0] + key[1].seconds <= now:
                sent.popleft()
            if not sent:
                del self._sent[key]
