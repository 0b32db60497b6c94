"""One attend job: read what a conversation waits for, judge it, answer it, and call a human when it turned sour."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from bot.catalogue import language_of, languages, say, say_when
from bot.circuit import Circuit
from bot.conversation import Author, Call, Line, Outcome, Owner, Reason
from bot.deliver import Progress
from bot.errors import DeadlineExceeded, EngineError, LeaseLost
from bot.escalate import CardWriter
from bot.hours import Hours
from bot.messages import MARKS, Adapter, InboundKind, OutboundKind, Platform, Preview, Sentiment
from bot.metrics import Metrics
from bot.policy import (
    CAUGHT_UP,
    OUT_OF_ORDER,
    SLOW,
    SLOW_AFTER,
    TOO_LATE,
    TOO_LATE_AFTER,
    Decision,
    Heard,
    Instead,
    Limits,
    decide,
    forgets,
    needs_model,
    shed,
    stand_in,
)
from bot.store.database import Writer
from bot.store.jobs import Claim
from bot.store.store import Clock, Store, utc_now
from bot.store.values import Say, Settlement, Verdict, Waiting
from engine.types import Engine, LabelRole, Reply, Speaker, TextRole, Turn

log = structlog.get_logger(__name__)

GRACE_S = 5.0
"""How long after its own deadline an engine that keeps none is given up."""

_AWAITED = ("human_called", "human_already_called", "status_waiting", "failed", "out_of_order", "too_late")
"""Sentences that promise a colleague, who may not be there just now."""


@dataclass(frozen=True, slots=True)
class Manners:
    """How the desk behaves: two roles, the seconds an engine may take, how moods are judged, which words call a human,
    what is too much, our name, how agents are told, and when they are there."""

    sentiment: LabelRole
    reply: TextRole
    deadline_s: float
    negative: str
    threshold: float
    keywords: tuple[str, ...]
    limits: Limits
    shop: str
    cards: CardWriter
    hours: Hours


class Attendant:
    """Handles attend jobs. `on_settled` wakes the queue, since there may be something to deliver now."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        engine: Engine,
        adapters: Mapping[Platform, Adapter],
        manners: Manners,
        metrics: Metrics,
        on_settled: Callable[[], None],
        circuit: Circuit,
        clock: Clock = utc_now,
    ) -> None:
        self._now = clock
        self._store = store
        self._writer = writer
        self._engine = engine
        self._adapters = adapters
        self._manners = manners
        self._metrics = metrics
        self._on_settled = on_settled
        self._circuit = circuit
        self._broken_at = self._caught_up_at = clock()

    async def __call__(self, claim: Claim) -> None:
        """Attend once. Raises EngineError for the queue to retry, LeaseLost when another worker took over."""
        waiting = await self._writer(self._store.waiting, claim)
        with structlog.contextvars.bound_contextvars(messages=[line.id for line in waiting.lines]):
            settlement = await self._attend(waiting)
            try:
                erased = await self._writer(self._store.finish, claim, settlement)
            except LeaseLost:  # perhaps the customer was erased, and the model has read them again since
                await self._engine.forget(str(claim.conversation_id))
                raise
            for conversation_id in erased:
                await self._engine.forget(str(conversation_id))
            self._report(settlement)

    async def bury(self, claim: Claim, error: str) -> None:
        """The job failed for good: never in silence. The customer is told, a human is called."""
        waiting = await self._writer(self._store.waiting, claim)
        settlement = Settlement()
        if waiting.lines:
            newest = waiting.lines[-1]
            settlement = Settlement(
                tuple(Verdict(line.id, Outcome.DEAD) for line in waiting.lines),
                (self._notice("failed", waiting),),
                Call(Reason.FAILED, newest.id),
            )
        await self._writer(self._store.bury_attend, claim, settlement, error)
        self._report(settlement)

    # -- what to say -----------------------------------------------------------------------------

    async def _attend(self, waiting: Waiting) -> Settlement:
        if not waiting.lines:
            return Settlement()
        waited = (now := self._now()) - waiting.lines[0].at
        if waited < CAUGHT_UP:
            self._caught_up_at = now
        silent = waiting.conversation.owner is Owner.HUMAN
        moods, reply, seen = dict[int, Sentiment](), None, ""
        if silent:
            moods = await self._read_moods(waiting)
        elif not forgets(waiting.lines):
            if self._manners.limits.passed(waiting.pace):
                return self._shed(waiting)
            if waited > TOO_LATE_AFTER and _texts(waiting.lines):
                return await self._stand_in(waiting, TOO_LATE, since=self._caught_up_at)
            asked = await self._ask_if_well(waiting)
            if asked is None:
                return await self._stand_in(waiting, OUT_OF_ORDER, since=self._broken_at)
            moods, reply, seen = asked
        heard = [Heard(line, moods.get(line.id)) for line in waiting.lines]
        told = any(line.cut for line in waiting.history)
        decision = decide(heard, waiting.conversation.owner, self._manners.keywords, told)
        slow = waited > SLOW_AFTER and not (silent or decision.forget)
        if slow and not await self._was_told(waiting, SLOW, self._caught_up_at):
            decision = replace(decision, before=(SLOW, *decision.before))
        verdicts = _verdicts(heard, decision.call, Outcome.SILENT if silent else Outcome.ANSWERED)
        if decision.language:
            waiting = _speaking(waiting, decision.language)
        says = tuple(self._says(waiting, decision, reply))
        relays = tuple(self._relays(waiting, moods))
        return Settlement(verdicts, says, decision.call, decision.language, decision.forget, silent, seen, relays)

    def _relays(self, waiting: Waiting, moods: Mapping[int, Sentiment]) -> Iterator[tuple[int, str]]:
        customer = waiting.conversation.customer
        for line in waiting.lines:
            judged = replace(line, sentiment=moods.get(line.id))
            yield line.id, self._manners.cards.relayed(judged, customer.name or customer.id)

    def _shed(self, waiting: Waiting) -> Settlement:
        owner, keywords = waiting.conversation.owner, self._manners.keywords
        decision = shed(waiting.lines, owner, keywords, told=waiting.pace.shed)
        return self._unread(waiting, decision, Outcome.SHED)

    async def _was_told(self, waiting: Waiting, key: str, since: datetime) -> bool:
        """Whether a sentence without fields was said, in any language."""
        sentences = [say(key, code) for code in languages()]
        return await self._writer(self._store.was_told, waiting.conversation.id, sentences, since)

    async def _stand_in(self, waiting: Waiting, instead: Instead, since: datetime) -> Settlement:
        owner, keywords = waiting.conversation.owner, self._manners.keywords
        told = await self._was_told(waiting, instead.sentence, since)
        return self._unread(waiting, stand_in(waiting.lines, owner, keywords, instead, told), instead.outcome)

    def _unread(self, waiting: Waiting, decision: Decision, others: Outcome) -> Settlement:
        verdicts = _verdicts([Heard(line) for line in waiting.lines], decision.call, others)
        if decision.language:
            waiting = _speaking(waiting, decision.language)
        says, relays = tuple(self._says(waiting, decision, None)), tuple(self._relays(waiting, {}))
        return Settlement(verdicts, says, decision.call, decision.language, relays=relays)

    def _says(self, waiting: Waiting, decision: Decision, reply: Reply | None) -> list[Say]:
        says = [self._notice(key, waiting) for key in decision.before]
        if decision.answer:
            says.append(self._answer(waiting, reply))
        return says + [self._notice(key, waiting) for key in decision.after]

    def _answer(self, waiting: Waiting, reply: Reply | None) -> Say:
        text = _own_words(reply.text).strip() if reply else ""
        if not text:
            return self._notice("unknown_person_offer", waiting)
        adapter = self._adapters.get(waiting.conversation.address.platform)
        parts = tuple(adapter.split(text)) if adapter else (text,)
        return Say(OutboundKind.REPLY, parts, waiting.lines[-1].reply_to)

    def _notice(self, key: str, waiting: Waiting) -> Say:
        newest = waiting.lines[-1]
        words = newest.text if newest.kind is InboundKind.TEXT else ""
        conversation = waiting.conversation
        language = conversation.customer.chosen or language_of(words, conversation.customer.language)
        mark = MARKS[conversation.address.platform]
        choices = ", ".join(f"{mark}language {code} ({each.name})" for code, each in languages().items())
        text = say(key, language, shop=self._manners.shop, choices=choices, mark=mark)
        if key in _AWAITED and (opens := self._manners.hours.until(now := self._now())):
            text += "\n" + say("closed", language, when=say_when(opens, now, language))
        return Say(OutboundKind.NOTICE, (text,), newest.reply_to)

    # -- what the model says ---------------------------------------------------------------------

    async def _ask_if_well(self, waiting: Waiting) -> tuple[dict[int, Sentiment], Reply | None, str] | None:
        """None where the engine is out of order, or just proved to be. Raises EngineError for a retry."""
        if not _texts(waiting.lines):
            return {}, None, ""
        if not self._circuit.lets_through():
            return None
        try:
            async with self._watched():
                return await self._ask_engine(waiting)
        except EngineError as error:
            if not self._circuit.is_open:
                raise
            log.warning("not answered", error=str(error))
            return None

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Whether the engine fails is counted once for all that is asked about a conversation together.

        An engine keeps its deadlines itself; one that hangs does not.
        """
        try:
            async with self._in_time():
                yield
        except EngineError as error:
            if self._circuit.failed():
                self._broken_at = self._now()
                self._metrics.circuit(True)
                log.error("the engine is out of order; humans are called until it answers again", error=str(error))
            raise
        if self._circuit.succeeded():
            self._metrics.circuit(False)
            log.info("the engine answers again")

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._manners.deadline_s + GRACE_S):
                yield
        except TimeoutError:
            raise DeadlineExceeded("the engine hangs: restart frontdesk if it goes on") from None

    async def _ask_engine(self, waiting: Waiting) -> tuple[dict[int, Sentiment], Reply | None, str]:
        """Mood and reply are asked for at the same time; the mood is there first and shown at once.

        Returns also what the customer saw of the reply meanwhile.
        """
        newest, conversation = waiting.lines[-1], waiting.conversation
        preview = Preview(
            conversation.address, conversation.customer.id, newest.id, newest.reply_to, begun=conversation.begun
        )
        adapter = self._adapters.get(conversation.address.platform)
        reply: asyncio.Task[Reply] | None = None
        async with Progress(
            adapter,
            preview,
            may_speak=lambda: self._writer(self._store.may_speak, conversation.id),
            began=lambda begun: self._writer(self._store.began, conversation.id, begun),
            on_over=lambda: bool(reply and reply.cancel()),  # nobody will read the rest
        ) as progress:
            try:
                async with asyncio.TaskGroup() as tasks:
                    moods = [tasks.create_task(self._mood(line, progress)) for line in _texts(waiting.lines)]
                    if needs_model(waiting.lines, self._manners.keywords):
                        reply = tasks.create_task(self._reply(waiting, progress))
            except* Exception as group:
                raise group.exceptions[0] from None  # what failed, without the group around it
        whole = reply.result() if reply and not reply.cancelled() else None
        return dict(task.result() for task in moods), whole, progress.seen

    async def _read_moods(self, waiting: Waiting) -> dict[int, Sentiment]:
        """For a human who owns the conversation: what their customer says reaches them also where the model fails."""
        texts = _texts(waiting.lines)
        if not texts or not self._circuit.lets_through():
            return {}
        try:
            async with self._watched():
                return dict([await self._mood(line) for line in texts])
        except EngineError as error:
            log.warning("mood not read", error=str(error))
            return {}

    async def _mood(self, line: Line, progress: Progress | None = None) -> tuple[int, Sentiment]:
        started = asyncio.get_running_loop().time()
        scores = await self._engine.label(self._manners.sentiment, line.text)
        self._metrics.engine(self._manners.sentiment.name, asyncio.get_running_loop().time() - started)
        self._metrics.mood(scores.best)
        negative = scores.probabilities[self._manners.negative]
        sentiment = Sentiment(scores.best, negative, self._manners.threshold)
        log.info("mood read", message=line.id, label=sentiment.label, negative=round(negative, 3))
        if progress is not None:
            progress.show(sentiment=sentiment)
        return line.id, sentiment

    async def _reply(self, waiting: Waiting, progress: Progress) -> Reply:
        turns = to_turns((*waiting.history, *waiting.lines))
        known_as = str(waiting.conversation.id)
        reply = await self._engine.write(self._manners.reply, turns, lambda text: progress.show(text=text), known_as)
        self._metrics.engine(self._manners.reply.name, reply.total_s)
        self._metrics.first_token(reply.first_token_s)
        log.info("reply written", tokens=reply.tokens, stopped=reply.stopped, seconds=round(reply.total_s, 2))
        return reply

    def _report(self, settlement: Settlement) -> None:
        for verdict in settlement.verdicts:
            self._metrics.outcome(verdict.outcome)
            log.info("settled", message=verdict.message_id, outcome=verdict.outcome)
        if settlement.call is not None:
            log.info("human called", reason=settlement.call.reason, message=settlement.call.message_id)
        self._on_settled()


def _speaking(waiting: Waiting, language: str) -> Waiting:
    conversation = waiting.conversation
    return replace(
        waiting, conversation=replace(conversation, customer=replace(conversation.customer, chosen=language))
    )


def to_turns(lines: Sequence[Line]) -> list[Turn]:
    """The history as the model sees it: words only, and neighbours of one speaker joined, as the template expects."""
    turns: list[Turn] = []
    for line in lines:
        if line.author is Author.NOTICE or line.kind is not InboundKind.TEXT or not line.text.strip():
            continue
        if line.outcome is Outcome.SHED:
            continue
        speaker = Speaker.USER if line.author is Author.CUSTOMER else Speaker.ASSISTANT
        text = f"{_marked(line.text)}{line.text}" if line.author is Author.AGENT else line.text
        if turns and turns[-1].speaker is speaker:
            turns[-1] = Turn(speaker, f"{turns[-1].text}\n{text}")
        else:
            turns.append(Turn(speaker, text))
    return turns


def _marked(text: str) -> str:
    """What a colleague said is marked, so that the model does not take it for its own."""
    return f"[{say('author_agent', language_of(text, ''))}] "


def _own_words(text: str) -> str:
    """Without the mark of a colleague, where the model imitated it."""
    marks = "|".join(re.escape(say("author_agent", code)) for code in languages())
    return re.sub(rf"\[(?:{marks})\]\s*", "", text)


def _texts(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.kind is InboundKind.TEXT]


def _verdicts(heard: Sequence[Heard], call: Call | None, others: Outcome) -> tuple[Verdict, ...]:
    evidence = call.message_id if call and call.reason is not Reason.OVERLOAD else None  # nothing was read there
    return tuple(
        Verdict(each.line.id, Outcome.ESCALATED if each.line.id == evidence else others, each.sentiment)
        for each in heard
    )
