"""Measure the bundled model on what was held out, and print the figures of its card: `python -m engine.bundled.score`.

Moods: messages made from templates and words that training never saw, beside a judge who only knows keywords.
Replies: unseen phrasings; an answer fits when it is one of those written for the intent, in the customer's language,
and ended by itself. An unhappy customer may be answered with an apology whatever the matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from engine import roles
from engine.bundled import PATH, texts
from engine.bundled.texts import Message, Template
from engine.qwen import QwenEngine
from engine.types import EngineConfig, Reply, Speaker, StopReason, Turn

FILLINGS = 12
"""Messages made from each held-out template."""
SEED = 7

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mood:
    """A generated message and what was made of it."""

    template: Template
    message: Message
    negative: bool
    by_keywords: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """An unseen phrasing and what was answered."""

    message: Message
    reply: Reply

    @property
    def fits(self) -> bool:
        fitting = {self.message.intent, "complaint"} if self.message.negative else {self.message.intent}
        known = texts.replies()
        texts_that_fit = {text for intent in fitting for text in known[intent][self.message.language]}
        return self.reply.stopped is StopReason.END and self.reply.text in texts_that_fit


def main() -> None:
    console = Console(soft_wrap=True)
    moods, answers = asyncio.run(measure())
    console.print(mood_table(moods, "phenomenon", lambda mood: f"{mood.template.language} {mood.template.phenomenon}"))
    console.print(mood_table(moods, "template", lambda mood: f"{mood.template.language} {mood.template.name}"))
    console.print(answer_table(answers))
    for answer in answers:
        if not answer.fits:
            console.print(f"  {answer.message.intent}: {answer.message.text} → {answer.reply.text}", highlight=False)


async def measure() -> tuple[list[Mood], list[Answer]]:
    """Ask the bundled model about everything that was held out."""
    engine = QwenEngine.load(EngineConfig(), PATH)
    torch.manual_seed(SEED)  # a seed of the engine's would let every reply draw alike
    try:
        with Progress() as progress:
            return await _moods(engine, progress), await _answers(engine, progress)
    finally:
        await engine.close()


async def _moods(engine: QwenEngine, progress: Progress) -> list[Mood]:
    random, sad, glad = Random(SEED), *keywords()
    role = roles.sentiment()
    drawn = [(each, each.fill(random)) for each in texts.templates(texts.HELDOUT) for _ in range(FILLINGS)]
    scores = await _all([engine.label(role, message.text) for _, message in drawn], progress, "moods")
    return [
        Mood(template, message, found.best == role.labels[1], judged_by_keywords(message.text, sad, glad))
        for (template, message), found in zip(drawn, scores, strict=True)
    ]


async def _answers(engine: QwenEngine, progress: Progress) -> list[Answer]:
    messages, role = texts.held_out_replies(), roles.reply()
    asked = [engine.write(role, [Turn(Speaker.USER, message.text)]) for message in messages]
    replies = await _all(asked, progress, "replies")
    return [Answer(message, reply) for message, reply in zip(messages, replies, strict=True)]


async def _all(work: Sequence[Coroutine[Any, Any, T]], progress: Progress, name: str) -> list[T]:
    task = progress.add_task(name, total=len(work))

    async def one(each: Coroutine[Any, Any, T]) -> T:
        found = await each
        progress.advance(task)
        return found

    return await asyncio.gather(*map(one, work))


# -- a judge who only knows keywords -----------------------------------------------------------------


def keywords() -> tuple[set[str], set[str]]:
    """The training templates' words that only unhappy, and that only happy messages hold."""
    sad, glad = set[str](), set[str]()
    for template in texts.templates(texts.CORPUS):
        used = {word.casefold() for slot in template.slots for word in template.words[slot]}
        (sad if template.negative else glad).update(used)
    return sad - glad, glad - sad


def judged_by_keywords(text: str, sad: Iterable[str], glad: Iterable[str]) -> bool:
    """Negative when it holds more sad words than glad ones."""
    words = text.casefold()
    return sum(word in words for word in sad) > sum(word in words for word in glad)


# -- tables ------------------------------------------------------------------------------------------


def mood_table(moods: Sequence[Mood], title: str, key: Callable[[Mood], str]) -> Table:
    table = Table(title, "messages", "model", "keywords alone", title=f"moods by {title}, held out")
    groups: dict[str, list[Mood]] = {}
    for mood in moods:
        groups.setdefault(key(mood), []).append(mood)
    for name, group in [*sorted(groups.items()), ("all", list(moods))]:
        table.add_row(name, str(len(group)), _share(m.negative == m.message.negative for m in group),
                      _share(m.by_keywords == m.message.negative for m in group))  # fmt: skip
    return table


def answer_table(answers: Sequence[Answer]) -> Table:
    table = Table("intent", *texts.LANGUAGES, title="replies that fit, unseen phrasings")
    intents = list(texts.replies())
    for intent in [*intents, "all"]:
        of_intent = [each for each in answers if intent in ("all", each.message.intent)]
        shares = [_share(each.fits for each in of_intent if each.message.language == code) for code in texts.LANGUAGES]
        table.add_row(intent, *shares)
    return table


def _share(hits: Iterable[bool]) -> str:
    counted = list(hits)
    return f"{sum(counted) / len(counted):.1%} of {len(counted)}" if counted else "none"


if __name__ == "__main__":
    main()
