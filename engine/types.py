"""What the engine takes and gives: plain values and one port. Imports no torch, so everything may import it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Speaker(StrEnum):
    """Who said a turn; the values are the role names of the chat template."""

    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing said in a conversation, as the model sees it."""

    speaker: Speaker
    text: str


@dataclass(frozen=True, slots=True)
class LabelRole:
    """A task whose answer is one of a few fixed labels, read as a probability, never parsed from prose.

    `prompt` holds `{text}` once. The first tokens of the labels must differ under the model's
    tokenizer; the engine checks it when the role is first used and raises ConfigError.
    """

    name: str
    system: str
    prompt: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextRole:
    """A task whose answer is text, written turn after turn in the official chat template."""

    name: str
    system: str
    temperature: float = 0.7
    repetition_penalty: float = 1.2
    max_new_tokens: int = 128


@dataclass(frozen=True, slots=True)
class LabelScores:
    """Probability of each label of a role, renormalised over the labels: the values sum to 1."""

    probabilities: Mapping[str, float]

    @property
    def best(self) -> str:
        return max(self.probabilities, key=self.probabilities.__getitem__)


class StopReason(StrEnum):
    """Why a reply ended."""

    END = "end"  # the model closed its turn
    LENGTH = "length"  # max_new_tokens reached
    DEADLINE = "deadline"  # time was up; the text so far is the reply


@dataclass(frozen=True, slots=True)
class Reply:
    """What a text role wrote. Times are seconds since the request was made."""

    text: str
    tokens: int
    stopped: StopReason
    first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How to load and run one model.

    `model` is a hub id, a local directory, or "bundled"; `revision` only matters for a hub id.
    `context_tokens` bounds prompt plus history (oldest turns go first, never the newest message).
    `deadline_s` bounds one request from the moment it is made. `threads` 0 leaves it to torch. `precision` is "auto",
    "fp32", "fp16" or "int8". `guess` is whether replies are guessed ahead, which changes only how fast they come.
    `cache_megabytes` bounds what is kept of conversations between their replies.
    """

    model: str = "bundled"
    revision: str = ""
    context_tokens: int = 1024
    deadline_s: float = 60.0
    penalise_prompt: bool = False
    precision: str = "auto"
    guess: bool = True
    cache_megabytes: int = 200
    threads: int = 0
    seed: int | None = None


OnText = Callable[[str], None]
"""Called on the event loop with the whole text so far, each time it grew by printable characters."""


class Engine(Protocol):
    """One model, loaded once, for every task. Safe to call from any number of tasks of one event loop."""

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        ...

    async def label(self, role: LabelRole, text: str) -> LabelScores:
        """Score `text`. Raises EngineError, DeadlineExceeded."""
        ...

    async def write(
        self, role: TextRole, turns: Sequence[Turn], on_text: OnText | None = None, conversation: str = ""
    ) -> Reply:
        """Answer the last turn. Cancelling the task stops the model. Raises EngineError, DeadlineExceeded.

        What was read for the same `conversation` before need not be read again; no other conversation's is ever used.
        """
        ...

    async def forget(self, conversation: str) -> None:
        """Keep nothing of what was read or written for `conversation`."""
        ...

    async def close(self) -> None:
        """Stop the engine's thread; requests in flight end with EngineClosed."""
        ...
