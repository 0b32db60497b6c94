"""The engine: one Qwen2 model on one thread of its own, shared by every conversation and every role.

Callers are asyncio tasks. Each request becomes tokens to be read; the thread asks the scheduler for the next step, a
flat list of tokens of several requests, and lets the model read them at once. Who has read everything is answered: a
label by its scores, a reply by its next token. What was read stays: a role's fixed words, a conversation's history.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bot.errors import DeadlineExceeded, EngineClosed, EngineError, FrontdeskError
from engine.chat import Chat
from engine.draft import CONTEXT, ROWS, Index, Replies
from engine.history import cut, fit, refuse_crowding, refuse_monologue
from engine.kv import Histories, common
from engine.model import Model
from engine.network import Network, Past, Segment
from engine.precision import read_in
from engine.roles import CONTENT_FREE, beginnings
from engine.sampling import choose, penalise
from engine.scheduler import Item, Scheduler
from engine.threads import apart, give_back
from engine.types import EngineConfig, LabelRole, LabelScores, OnText, Reply, Speaker, StopReason, TextRole, Turn

Role = LabelRole | TextRole

IDLE_S = 1.0
"""Without a request, after which what was freed is given back."""
ALIKE = "begin with the same token of this model, which cannot tell them apart"


@dataclass(slots=True, eq=False)
class _Check:
    """A role to be refused before the first message, if at all."""

    role: Role
    answer: Future[None] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class _Forget:
    """A conversation of which nothing is kept."""

    conversation: str
    answer: Future[None] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class _Label:
    """A text to be scored by a role."""

    role: LabelRole
    text: str
    deadline: float
    answer: Future[LabelScores] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class _Write:
    """A reply to be written. `conversation` names whose history may be found read already, "" nobody's."""

    role: TextRole
    turns: list[Turn]
    show: OnText
    asked: float
    deadline: float
    conversation: str
    answer: Future[Reply] = field(default_factory=Future)


_Request = _Check | _Forget | _Label | _Write


@dataclass(slots=True, eq=False, kw_only=True)
class _Reading(Item):
    """A request in line: what is still to be read, and the cache that takes it up."""

    request: _Label | _Write
    cache: Past
    new: list[int]


@dataclass(slots=True, eq=False, kw_only=True)
class _Writing(_Reading):
    """A reply on its way. `guessed` are the last of the `new` tokens: to be read, but said only if they are drawn."""

    request: _Write
    draw: Callable[[Tensor, list[int]], int]
    prompt: Index
    opening: list[int]
    reply: list[int] = field(default_factory=list)
    guessed: list[int] = field(default_factory=list)
    daring: int = 3
    shown: str = ""
    first_token_s: float = 0.0


class QwenEngine:
    """engine.types.Engine on a Qwen2 chat model, on the CPU. Made by load(); ends with close()."""

    def __init__(self, model: Network, stops: frozenset[int], tokenizer: PreTrainedTokenizerBase, config: EngineConfig):
        self._model = model
        self._stops = stops
        self._chat = Chat(tokenizer)
        self._config = config
        self._readings: dict[LabelRole, tuple[Tensor, Tensor]] = {}
        self._prefixes: dict[Role, Past] = {}
        self._histories = Histories(config.cache_megabytes * 1_000_000)
        self._inbox: SimpleQueue[_Request | None] = SimpleQueue()
        self._line = Scheduler[_Reading]()
        self._replies = Replies()
        self._guessed = self._right = 0
        self._closed = False
        self._thread = Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, config: EngineConfig, path: Path, on_progress: Callable[[float], None] | None = None) -> QwenEngine:
        """Read the model in `path` (from engine.load.resolve) and start the engine's thread. Blocks for seconds.

        `on_progress` is called with 0 to 1 while the weights are read. Raises ModelUnavailable, and ConfigError for a
        precision that this machine does not have.
        """
        report = on_progress or (lambda share: None)
        found: Model = apart(lambda: read_in(path, config.precision, report))
        return cls(found.network, found.stops, found.tokenizer, config)

    # -- for callers, on their event loop ----------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        return not self._closed and self._thread.is_alive()

    @property
    def guesses(self) -> tuple[int, int]:
        """How many tokens of replies were guessed ahead, and how many of these were right."""
        return self._guessed, self._right

    async def label(self, role: LabelRole, text: str) -> LabelScores:
        """Probabilities of the role's labels for `text`, from one reading; they sum to 1.

        The score of a label is that of its first token, divided by what the label scores on content-free input
        (contextual calibration: Zhao et al. 2021, arXiv 2102.09690), which is measured once per role. A text beyond
        context_tokens loses its middle. Raises EngineError, DeadlineExceeded, EngineClosed; ConfigError as check().
        """
        scores: LabelScores = await self._ask(_Label(role, text, time.monotonic() + self._config.deadline_s))
        return scores

    async def write(
        self, role: TextRole, turns: Sequence[Turn], on_text: OnText | None = None, conversation: str = ""
    ) -> Reply:
        """Answer the last turn, which is the customer's. Special tokens and half characters never reach the text.

        Prompt and history are held within context_tokens; the reply's tokens come on top. At the deadline the text so
        far is the reply. What of the prompt was read for the same `conversation` before is not read again. Raises
        EngineError, DeadlineExceeded before the first token, EngineClosed; ConfigError as check().
        """
        asked = time.monotonic()
        loop = asyncio.get_running_loop()
        listening = on_text

        def deliver(text: str) -> None:
            if listening:
                listening(text)

        def show(text: str) -> None:
            if on_text:
                loop.call_soon_threadsafe(deliver, text)

        deadline = asked + self._config.deadline_s
        try:
            reply: Reply = await self._ask(_Write(role, list(turns), show, asked, deadline, conversation))
            return reply
        finally:
            listening = None  # what is still under way to a cancelled caller is not delivered

    async def check(self, role: Role) -> None:
        """Refuse, before the first message, a role that this model cannot serve; read what all its prompts share.

        Raises ConfigError: two labels begin with the same token, or the role's words fill context_tokens.
        """
        await self._ask(_Check(role))

    async def forget(self, conversation: str) -> None:
        """Keep nothing of what was read or written for `conversation`. Raises EngineClosed."""
        await self._ask(_Forget(conversation))

    async def close(self) -> None:
        """Stop the thread after its current step; requests in flight end with EngineClosed. May be called again."""
        self._closed = True
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _ask(self, request: _Request) -> Any:
        if self._closed:
            raise EngineClosed("the engine was closed: start frontdesk again")
        self._inbox.put(request)
        return await asyncio.wrap_future(request.answer)

    # -- the thread --------------------------------------------------------------------------------

    def _serve(self) -> None:
        if self._config.threads:
            torch.set_num_threads(self._config.threads)
        with torch.inference_mode():
            while self._collect():
                self._drop_who_gave_up()
                self._run(self._line.plan())
        for reading in self._line:
            _settle(reading.request.answer, EngineClosed("the engine was closed before it had answered"))

    def _collect(self) -> bool:
        """Put new requests in line, waiting for one when there is nothing to do. False once the engine is closed."""
        while not len(self._line) or not self._inbox.empty():
            request = self._next()
            if request is None:
                return False
            try:
                self._begin(request)
            except Exception as cause:
                _settle(request.answer, cause if isinstance(cause, FrontdeskError) else _failure(cause))
        return True

    def _next(self) -> _Request | None:
        with suppress(Empty):
            return self._inbox.get(timeout=IDLE_S)
        give_back()
        return self._inbox.get()

    def _begin(self, request: _Request) -> None:
        if request.answer.cancelled():
            return
        if isinstance(request, _Check):
            self._check(request.role)
            _settle(request.answer, None)
            return
        if isinstance(request, _Forget):
            self._histories.take(request.conversation)
            self._replies = Replies()  # it does not know whose they were
            _settle(request.answer, None)
            return
        _refuse_late(request.deadline)
        self._line.add(self._labelling(request) if isinstance(request, _Label) else self._writing(request))

    def _drop_who_gave_up(self) -> None:
        """Callers that were cancelled, and replies whose time is up."""
        now = time.monotonic()
        for reading in self._line:
            if reading.request.answer.cancelled():
                self._leave(reading)
            elif now >= reading.request.deadline:
                if isinstance(reading, _Writing) and reading.reply:
                    self._finish(reading, StopReason.DEADLINE)
                else:
                    self._leave(reading, _late())

    def _run(self, chosen: list[tuple[_Reading, int]]) -> None:
        """Let the model read one step's tokens; where that fails, each alone, so that none fails for its neighbour."""
        if not chosen:
            return
        starts = [len(reading.cache) for reading, _ in chosen]
        try:
            found = self._read(chosen)
        except Exception as cause:
            for (reading, _), start in zip(chosen, starts, strict=True):
                reading.cache.keep(start)
            if len(chosen) > 1:
                for alone in chosen:
                    self._run([alone])
            else:
                self._leave(chosen[0][0], _failure(cause))
            return
        for (reading, count), logits in zip(chosen, found, strict=True):
            del reading.new[:count]
            reading.waiting = len(reading.new)
            if logits is not None:
                self._attempt(reading, logits)

    def _read(self, chosen: list[tuple[_Reading, int]]) -> list[Tensor | None]:
        """For each, the logits of what follows once it has read everything: those of its labels; of a reply those of
        all tokens, in a row for every token that may be said.
        """
        hidden = self._model.forward([Segment(reading.cache, reading.new[:count]) for reading, count in chosen])
        found: dict[int, Tensor] = {}
        spoken: dict[int, Tensor] = {}
        for number, rows in enumerate(torch.split(hidden, [count for _, count in chosen])):
            reading, count = chosen[number]
            if count < len(reading.new):
                continue
            if isinstance(reading, _Writing):
                spoken[number] = rows[-1 - len(reading.guessed) :]
            else:
                found[number] = self._label_logits(reading, rows[-1])
        if spoken:
            logits = self._model.logits(torch.cat(list(spoken.values())))
            found.update(zip(spoken, torch.split(logits, [len(rows) for rows in spoken.values()]), strict=True))
        return [found.get(number) for number in range(len(chosen))]

    def _attempt(self, reading: _Reading, logits: Tensor) -> None:
        """Answer from the logits; what goes wrong is this request's alone."""
        try:
            if isinstance(reading, _Writing):
                self._speak(reading, _finite(logits))
            else:
                self._score(reading, _finite(logits))
        except Exception as cause:
            self._leave(reading, cause if isinstance(cause, FrontdeskError) else _failure(cause))

    def _leave(self, reading: _Reading, outcome: object = None) -> None:
        """Out of the line, with an answer unless nobody waits for one."""
        self._line.remove(reading)
        if isinstance(reading, _Writing) and not isinstance(outcome, EngineError):
            self._histories.keep(reading.request.conversation, reading.cache)
        _settle(reading.request.answer, outcome)

    # -- labels ------------------------------------------------------------------------------------

    def _labelling(self, request: _Label) -> _Reading:
        role, budget = request.role, self._budget()
        self._reading(role)
        text = cut(request.text, lambda kept: len(self._chat.question(role, kept)), budget)
        cache, new = self._started(role, self._chat.question(role, text))
        return _Reading(urgent=True, waiting=len(new), request=request, cache=cache, new=new)

    def _label_logits(self, reading: _Reading, hidden: Tensor) -> Tensor:
        tokens, _ = self._readings[_label_role(reading)]
        return self._model.logits_of(hidden[None], tokens)[0]

    def _score(self, reading: _Reading, logits: Tensor) -> None:
        role = _label_role(reading)
        scores = torch.softmax(_log_scores(logits) - self._readings[role][1], dim=-1)
        self._leave(reading, LabelScores(dict(zip(role.labels, scores.tolist(), strict=True))))

    def _reading(self, role: LabelRole) -> tuple[Tensor, Tensor]:
        """First tokens of the labels, and the log of their prior: (labels,) each."""
        if role not in self._readings:
            refuse_crowding(role.name, len(self._chat.question(role, "")), self._budget())
            tokens = torch.tensor(beginnings(role, self._chat.encode, ALIKE))
            started = [self._started(role, self._chat.question(role, text)) for text in CONTENT_FREE]
            hidden = self._model.forward([Segment(cache, new) for cache, new in started])
            ends = torch.tensor([len(new) for _, new in started]).cumsum(0) - 1
            logits = _finite(self._model.logits_of(hidden[ends], tokens))
            self._readings[role] = tokens, _log_scores(logits).exp().mean(dim=0).log()
        return self._readings[role]

    # -- replies -----------------------------------------------------------------------------------

    def _writing(self, request: _Write) -> _Writing:
        prompt = self._fitted_prompt(request.role, request.turns)
        cache, new = self._started(request.role, prompt, request.conversation)
        return _Writing(
            urgent=False,
            waiting=len(new),
            request=request,
            cache=cache,
            new=new,
            draw=self._sampler(request.role, prompt),
            prompt=Index(prompt if self._config.guess else ()),
            opening=prompt[-CONTEXT:],
        )

    def _speak(self, writing: _Writing, logits: Tensor) -> None:
        """Say the next token, and go on as long as what is drawn is what was guessed."""
        guessed, right = writing.guessed, 0
        for row in logits:
            token = writing.draw(row, writing.reply)
            stopped = self._say(writing, token)
            if stopped or right == len(guessed) or token != guessed[right]:
                break
            right += 1
        writing.cache.keep(len(writing.cache) - len(guessed) + right)
        self._guessed, self._right = self._guessed + len(guessed), self._right + right
        if stopped:
            self._replies.learn(writing.opening, writing.reply)
            self._finish(writing, stopped)
            return
        if guessed:
            writing.daring = min(2 * writing.daring, ROWS) if right == len(guessed) else max(1, right)
        writing.guessed = self._guess(writing)
        writing.new = [writing.reply[-1], *writing.guessed]
        writing.waiting, writing.speaking = len(writing.new), True

    def _say(self, writing: _Writing, token: int) -> StopReason | None:
        """One more token of a reply, or why it ends."""
        request = writing.request
        writing.first_token_s = writing.first_token_s or time.monotonic() - request.asked
        if token in self._stops:
            return StopReason.END
        writing.reply.append(token)
        if len(text := self._chat.text(writing.reply)) > len(writing.shown):
            writing.shown = text
            request.show(text)
        return StopReason.LENGTH if len(writing.reply) >= request.role.max_new_tokens else None

    def _guess(self, writing: _Writing) -> list[int]:
        """What may follow, as far as reading it along costs little: the fewer replies are being written the more."""
        speaking = sum(each.speaking or each is writing for each in self._line)
        most = min(writing.daring, ROWS // speaking - 1)
        if most < 1 or not self._config.guess:
            return []
        context = [*writing.opening, *writing.reply[-CONTEXT:]]
        return list(writing.prompt.after(context, most) or self._replies.after(context, most))

    def _finish(self, writing: _Writing, stopped: StopReason) -> None:
        reply, total = writing.reply, time.monotonic() - writing.request.asked
        self._leave(writing, Reply(self._chat.text(reply), len(reply), stopped, writing.first_token_s, total))

    def _sampler(self, role: TextRole, prompt: list[int]) -> Callable[[Tensor, list[int]], int]:
        """How the next token is drawn from logits, given the reply so far. With a seed, each reply draws alike."""
        generator = None if self._config.seed is None else torch.Generator().manual_seed(self._config.seed)
        counted = prompt if self._config.penalise_prompt else []

        def draw(logits: Tensor, reply: list[int]) -> int:
            return choose(penalise(logits, counted + reply, role.repetition_penalty), role.temperature, generator)

        return draw

    def _fitted_prompt(self, role: TextRole, turns: list[Turn]) -> list[int]:
        refuse_monologue(turns)
        budget = self._budget_beside(role)
        return self._chat.prompt(role, fit(turns, lambda kept: len(self._chat.prompt(role, kept)), budget))

    # -- what is read once -------------------------------------------------------------------------

    def _started(self, role: Role, prompt: list[int], conversation: str = "") -> tuple[Past, list[int]]:
        """A cache with as much of the prompt as was read before, and the rest, which is at least one token."""
        prefix = self._prefix(role)
        shared = min(common(prefix.tokens, prompt), len(prompt) - 1)
        history = self._histories.take(conversation)
        if history is not None and (known := min(common(history.tokens, prompt), len(prompt) - 1)) > shared:
            history.keep(known)
            return history, prompt[known:]
        return prefix.copy(shared, len(prompt) - shared), prompt[shared:]

    def _prefix(self, role: Role) -> Past:
        """What all prompts of a role begin with, read once."""
        if role not in self._prefixes:
            one, other = self._rendered(role, "a"), self._rendered(role, "1")
            cache = self._model.begin()
            self._model.forward([Segment(cache, one[: common(one, other)])])
            self._prefixes[role] = cache
        return self._prefixes[role]

    def _rendered(self, role: Role, text: str) -> list[int]:
        if isinstance(role, LabelRole):
            return self._chat.question(role, text)
        return self._chat.prompt(role, [Turn(Speaker.USER, text)])

    # -- the window --------------------------------------------------------------------------------

    def _check(self, role: Role) -> None:
        if isinstance(role, LabelRole):
            self._reading(role)
        else:
            self._budget_beside(role)
        self._prefix(role)

    def _budget_beside(self, role: TextRole) -> int:
        """Tokens for prompt and history together. Raises ConfigError when the role's own words leave no room."""
        budget = self._budget(role.max_new_tokens)
        refuse_crowding(role.name, len(self._chat.prompt(role, [])), budget)
        return budget

    def _budget(self, reply: int = 0) -> int:
        return min(self._config.context_tokens, self._model.positions - reply)


def _label_role(reading: _Reading) -> LabelRole:
    role = reading.request.role
    assert isinstance(role, LabelRole)  # noqa: S101 - narrows the type
    return role


def _log_scores(logits: Tensor) -> Tensor:
    """Log-probabilities of the labels' first tokens among themselves, in the last dimension."""
    return torch.log_softmax(logits.double(), dim=-1)


def _finite(logits: Tensor) -> Tensor:
    if not torch.isfinite(logits.sum()):  # a sixteenth of the time of asking each
        raise EngineError("the model produced numbers that are not numbers: run `frontdesk model pull` to check it")
    return logits


def _settle(answer: Future[Any], outcome: object) -> None:
    """Answer the caller, unless it no longer waits."""
    if not answer.set_running_or_notify_cancel():
        return
    if isinstance(outcome, BaseException):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _failure(cause: Exception) -> EngineError:
    # A sentence of our own, else only the type of the cause: its text may quote the customer.
    known = isinstance(cause, FrontdeskError)
    error = EngineError(str(cause) if known else f"the model failed on a request with {type(cause).__name__}")
    error.__cause__ = cause
    return error


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed while the request waited in line: raise engine.deadline_seconds")


def _refuse_late(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise _late()
