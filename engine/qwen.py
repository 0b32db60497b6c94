"""The engine on transformers' Qwen2: one model, one thread of its own, shared by every conversation and both tasks.

Callers are asyncio tasks. Each request becomes a generator that does one step of model work between two yields; the
thread advances one step at a time, labels before replies and the replies in turn, so that a mood is read between two
words of a long answer and several answers stream side by side. Labels of one role that wait together are one step.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase, Qwen2ForCausalLM

from bot.errors import ConfigError, DeadlineExceeded, EngineClosed, EngineError, FrontdeskError
from engine.chat import Chat
from engine.history import cut, fit
from engine.model import read
from engine.roles import CONTENT_FREE
from engine.sampling import choose, penalise
from engine.types import EngineConfig, LabelRole, LabelScores, OnText, Reply, Speaker, StopReason, TextRole, Turn

LABEL_BATCH = 8
"""Labels scored in one forward pass."""

MESSAGE_ROOM = 32
"""Tokens that a role's own words must leave to the customer's."""

T = TypeVar("T")
Steps = Generator[None, None, T]


@dataclass(slots=True, eq=False)
class _Request:
    """One caller's work, its answer, and whether it goes before the replies."""

    steps: Steps[Any]
    answer: Future[Any]
    urgent: bool


@dataclass(slots=True, eq=False)
class _Labelling:
    """One text to be scored by a role, and its answer."""

    role: LabelRole
    text: str
    deadline: float
    answer: Future[Any]


class QwenEngine:
    """engine.types.Engine on a Qwen2 chat model, in fp32 on the CPU. Made by load(); ends with close()."""

    def __init__(self, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, config: EngineConfig) -> None:
        self._model = model
        self._chat = Chat(tokenizer)
        self._config = config
        self._stops = _stop_tokens(model, tokenizer)
        self._readings: dict[LabelRole, tuple[Tensor, Tensor]] = {}
        self._inbox: SimpleQueue[_Request | _Labelling | None] = SimpleQueue()
        self._urgent: deque[_Request | _Labelling] = deque()
        self._replies: deque[_Request] = deque()
        self._closed = False
        self._thread = Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, config: EngineConfig, path: Path, on_progress: Callable[[float], None] | None = None) -> QwenEngine:
        """Read the model in `path` (from engine.load.resolve) and start the engine's thread. Blocks for seconds.

        `on_progress` is called with 0 to 1 while the weights are read. Raises ModelUnavailable.
        """
        model, tokenizer = read(path, on_progress or (lambda share: None))
        return cls(model, tokenizer, config)

    # -- for callers, on their event loop ----------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        return not self._closed and self._thread.is_alive()

    async def label(self, role: LabelRole, text: str) -> LabelScores:
        """Probabilities of the role's labels for `text`, from one forward pass; they sum to 1.

        The score of a label is that of its first token, divided by what the label scores on content-free input
        (contextual calibration: Zhao et al. 2021, arXiv 2102.09690), which is measured once per role. A text beyond
        context_tokens loses its middle. Raises EngineError, DeadlineExceeded, EngineClosed; ConfigError as check().
        """
        deadline = time.monotonic() + self._config.deadline_s
        answer: LabelScores = await self._answer(_Labelling(role, text, deadline, Future()))
        return answer

    async def write(self, role: TextRole, turns: Sequence[Turn], on_text: OnText | None = None) -> Reply:
        """Answer the last turn, which is the customer's. Special tokens and half characters never reach the text.

        Prompt and history are held within context_tokens; the reply's tokens come on top. At the deadline the text so
        far is the reply. Raises EngineError, DeadlineExceeded before the first token, EngineClosed; ConfigError as
        check().
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

        try:
            return await self._ask(self._write(role, list(turns), show, asked), urgent=False)
        finally:
            listening = None  # what is still under way to a cancelled caller is not delivered

    async def check(self, role: LabelRole | TextRole) -> None:
        """Refuse, before the first message, a role that this model cannot serve; measure the prior of a LabelRole.

        Raises ConfigError: two labels begin with the same token, or the role's words fill context_tokens.
        """
        await self._ask(_one_step(lambda: self._check(role)), urgent=True)

    async def close(self) -> None:
        """Stop the thread after its current step; requests in flight end with EngineClosed. May be called again."""
        self._closed = True
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _ask(self, steps: Steps[T], *, urgent: bool) -> T:
        answer: T = await self._answer(_Request(steps, Future(), urgent))
        return answer

    async def _answer(self, request: _Request | _Labelling) -> Any:
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
                request = (self._urgent or self._replies).popleft()
                if isinstance(request, _Labelling):
                    self._label([request, *self._alike(request)])
                else:
                    self._advance(request)
        for request in [*self._urgent, *self._replies]:
            _settle(request, EngineClosed("the engine was closed before it had answered"))

    def _collect(self) -> bool:
        """Put new requests in line, waiting for one when there is nothing to do. False once the engine is closed."""
        while not (self._urgent or self._replies) or not self._inbox.empty():
            request = self._inbox.get()
            if request is None:
                return False
            if isinstance(request, _Labelling) or request.urgent:
                self._urgent.append(request)
            else:
                self._replies.append(request)
        return True

    def _alike(self, first: _Labelling) -> list[_Labelling]:
        """Those at the head of the line that can be scored together with `first`; they leave the line."""
        found: list[_Labelling] = []
        while self._urgent and len(found) < LABEL_BATCH - 1:
            request = self._urgent[0]
            if not isinstance(request, _Labelling) or request.role != first.role:
                break
            self._urgent.popleft()
            found.append(request)
        return found

    def _advance(self, request: _Request) -> None:
        """One step of `request`, and its place in line behind the other replies when it is not done."""
        if request.answer.cancelled():
            return
        try:
            next(request.steps)
        except StopIteration as end:
            _settle(request, end.value)
        except FrontdeskError as refusal:
            _settle(request, refusal)
        except Exception as cause:
            _settle(request, _failure(cause))
        else:
            self._replies.append(request)

    # -- the work of a request, on the thread ------------------------------------------------------

    def _check(self, role: LabelRole | TextRole) -> None:
        if isinstance(role, LabelRole):
            self._reading(role)
        else:
            self._budget_beside(role)

    def _label(self, requests: list[_Labelling]) -> None:
        """Score texts for one role together; where that fails, each alone, so that none fails for its neighbour."""
        waiting = [each for each in requests if not each.answer.cancelled()]
        try:
            found: list[Any] = self._scores(waiting)
        except Exception as cause:
            if len(waiting) > 1:
                for each in waiting:
                    self._label([each])
                return
            found = [cause if isinstance(cause, FrontdeskError) else _failure(cause)]
        for each, outcome in zip(waiting, found, strict=False):
            _settle(each, outcome)

    def _scores(self, requests: list[_Labelling]) -> list[LabelScores]:
        if not requests:
            return []
        role = requests[0].role
        for each in requests:
            _refuse_late(each.deadline)
        tokens, prior = self._reading(role)
        budget = self._budget()
        prompts = [
            self._chat.question(role, cut(each.text, lambda kept: len(self._chat.question(role, kept)), budget))
            for each in requests
        ]
        scores = torch.softmax(self._log_scores(prompts, tokens) - prior, dim=-1).tolist()
        return [LabelScores(dict(zip(role.labels, row, strict=True))) for row in scores]

    def _reading(self, role: LabelRole) -> tuple[Tensor, Tensor]:
        """First tokens of the labels, and the log of their prior: (labels,) each."""
        if role not in self._readings:
            self._refuse_crowding(role, self._chat.question(role, ""), self._budget())
            tokens = torch.tensor(self._first_tokens(role))
            scores = self._log_scores([self._chat.question(role, text) for text in CONTENT_FREE], tokens)
            self._readings[role] = tokens, scores.exp().mean(dim=0).log()
        return self._readings[role]

    def _first_tokens(self, role: LabelRole) -> list[int]:
        owners: dict[int, str] = {}
        for label in role.labels:
            tokens = self._chat.encode(label)
            if not tokens:
                raise ConfigError(f"a label of the role {role.name} is empty: give it a word")
            if tokens[0] in owners:
                raise ConfigError(
                    f"the labels {owners[tokens[0]]} and {label} of the role {role.name} begin with the same token of "
                    "this model, which cannot tell them apart: choose words that begin differently"
                )
            owners[tokens[0]] = label
        return list(owners)

    def _log_scores(self, prompts: list[list[int]], tokens: Tensor) -> Tensor:
        """Log-probabilities (prompts, labels) of the labels' first tokens among themselves."""
        return torch.log_softmax(self._forward(prompts)[:, tokens].double(), dim=-1)

    def _write(self, role: TextRole, turns: list[Turn], show: OnText, asked: float) -> Steps[Reply]:
        """The reply, one token a step. Its cache lives as long as this generator."""
        deadline = asked + self._config.deadline_s
        _refuse_late(deadline)
        prompt = self._fitted_prompt(role, turns)
        draw = self._sampler(role, prompt)
        cache = DynamicCache(config=self._model.config)
        new, reply, shown, first_token_s = prompt, list[int](), "", 0.0
        stopped = StopReason.LENGTH
        while len(reply) < role.max_new_tokens:
            if reply and time.monotonic() >= deadline:
                stopped = StopReason.DEADLINE
                break
            token = draw(self._forward([new], cache)[0], reply)
            first_token_s = first_token_s or time.monotonic() - asked
            if token in self._stops:
                stopped = StopReason.END
                break
            new = [token]
            reply += new
            if len(text := self._chat.text(reply)) > len(shown):
                show(shown := text)
            yield
        return Reply(self._chat.text(reply), len(reply), stopped, first_token_s, time.monotonic() - asked)

    def _sampler(self, role: TextRole, prompt: list[int]) -> Callable[[Tensor, list[int]], int]:
        """How the next token is drawn from logits, given the reply so far. With a seed, each reply draws alike."""
        generator = None if self._config.seed is None else torch.Generator().manual_seed(self._config.seed)
        counted = prompt if self._config.penalise_prompt else []

        def draw(logits: Tensor, reply: list[int]) -> int:
            return choose(penalise(logits, counted + reply, role.repetition_penalty), role.temperature, generator)

        return draw

    def _fitted_prompt(self, role: TextRole, turns: list[Turn]) -> list[int]:
        if not turns or turns[-1].speaker is not Speaker.USER:
            raise EngineError("nothing to answer: the last turn must be the customer's")
        budget = self._budget_beside(role)
        return self._chat.prompt(role, fit(turns, lambda kept: len(self._chat.prompt(role, kept)), budget))

    def _budget_beside(self, role: TextRole) -> int:
        """Tokens for prompt and history together. Raises ConfigError when the role's own words leave no room."""
        budget = self._budget(role.max_new_tokens)
        self._refuse_crowding(role, self._chat.prompt(role, []), budget)
        return budget

    def _budget(self, reply: int = 0) -> int:
        return min(self._config.context_tokens, self._model.config.max_position_embeddings - reply)

    def _refuse_crowding(self, role: LabelRole | TextRole, words: list[int], budget: int) -> None:
        if len(words) + MESSAGE_ROOM > budget:
            raise ConfigError(
                f"the instructions of the role {role.name} take {len(words)} of {budget} tokens and leave no room for "
                "a message: raise engine.context_tokens, or shorten business.about and business.facts"
            )

    def _forward(self, prompts: list[list[int]], cache: DynamicCache | None = None) -> Tensor:
        """Logits (prompts, vocabulary) of what follows each prompt. With a cache there is one prompt, which comes after
        what is in it and is added to it. Padding is on the right, where a causal model does not see it.
        """
        longest = max(map(len, prompts))
        ends = [len(prompt) - 1 for prompt in prompts]
        kept = sorted(set(ends))
        output = self._model(
            input_ids=torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts]),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=torch.tensor(kept),
        )
        logits: Tensor = output.logits[range(len(prompts)), [kept.index(end) for end in ends]]
        if not torch.isfinite(logits).all():
            raise EngineError("the model produced numbers that are not numbers: run `frontdesk model pull` to check it")
        return logits


def _one_step(work: Callable[[], T]) -> Steps[T]:
    """Work that is done whole, without letting others in between."""
    return work()
    yield  # makes this a generator


def _settle(request: _Request | _Labelling, outcome: object) -> None:
    """Answer the caller, unless it no longer waits."""
    if not request.answer.set_running_or_notify_cancel():
        return
    if isinstance(outcome, BaseException):
        request.answer.set_exception(outcome)
    else:
        request.answer.set_result(outcome)


def _failure(cause: Exception) -> EngineError:
    # Only the type of the cause: its text may quote the customer.
    error = EngineError(f"the model failed on a request with {type(cause).__name__}")
    error.__cause__ = cause
    return error


def _refuse_late(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise DeadlineExceeded("the deadline passed while the request waited in line: raise engine.deadline_seconds")


def _stop_tokens(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What ends a reply: the model's end tokens, and every special token, because none belongs in a text."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    own = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in [*own, *tokenizer.all_special_ids] if token is not None)
