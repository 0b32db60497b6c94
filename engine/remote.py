"""Any OpenAI-compatible model server behind the engine's port: vLLM, SGLang, llama.cpp's server. Imports no torch.

Servers differ in what they offer and mostly ignore what they do not know without a word, so connect() tries what moods
need, and `offers` says what was found. The model's tokenizer stays on the server, so lengths are counted on the safe
side: a role's own words by the server, of a conversation every character as one token and every emoji as four.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import openai
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.chat_completion_token_logprob import TopLogprob

from bot.errors import ConfigError, DeadlineExceeded, EngineClosed, EngineError, FrontdeskError, ModelUnavailable
from engine import chat_api
from engine.chat import shown
from engine.history import cut, fit, refuse_crowding, refuse_monologue
from engine.roles import CONTENT_FREE, beginnings
from engine.types import EngineConfig, LabelRole, LabelScores, OnText, Reply, Speaker, StopReason, TextRole, Turn

CONNECT_S = 5.0
TOP = 20
"""Likeliest tokens asked for: the most that the API's definition and vLLM's defaults allow."""

_CHOICES = ("structured_outputs", "guided_choice")
"""How vLLM is told to answer with one of several words: since 0.12, and before."""
_PENALTIES = {
    "vllm": "repetition_penalty",
    "sglang": "repetition_penalty",
    "llamacpp": "repeat_penalty",
    "me": "repeat_penalty",
}
"""The penalty that counts the prompt, too, by what a server calls itself in `owned_by` of /models; "me" is
llama-cpp-python."""
OWN_WORDS = "frequency_penalty"
"""What the API defines: subtracted from the logit of a token for each time that the reply has it."""
_REFUSALS = (400, 422, 500, 501)
"""How a server answers to an option that it does not have; llama-cpp-python with 500."""
_SETTINGS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
"""What another try would not mend."""

Role = LabelRole | TextRole

ALIKE = "begin with the same character, and perhaps with the same token of the model"


@dataclass(frozen=True, slots=True)
class Offers:
    """What a server was found to offer. `choice` is "" where it tells log-probabilities."""

    choice: str
    penalty: str

    def __str__(self) -> str:
        moods = "moods from log-probabilities"
        if self.choice:
            moods = f"no log-probabilities, so moods by {self.choice}, each taken to be {chat_api.CHOSEN:.0%} sure"
        if self.penalty == OWN_WORDS:
            return f"{moods}; {OWN_WORDS} for repetition_penalty, as it counts the reply's words alone"
        return f"{moods}; {self.penalty}, which counts words of the prompt as well"


@dataclass(slots=True)
class _Writing:
    """A reply on its way."""

    asked: float
    on_text: OnText | None
    raw: str = ""
    text: str = ""
    tokens: int = 0
    first_token_s: float = 0.0
    stopped: StopReason | None = None

    def take(self, chunk: ChatCompletionChunk) -> None:
        for choice in chunk.choices:
            if piece := choice.delta.content:
                self._say(piece)
            if choice.finish_reason:
                self.stopped = StopReason.LENGTH if choice.finish_reason == "length" else StopReason.END
        if chunk.usage:
            self.tokens = chunk.usage.completion_tokens

    def _say(self, piece: str) -> None:
        self.first_token_s = self.first_token_s or time.monotonic() - self.asked
        self.tokens += 1  # a token a piece, until the server has counted them
        self.raw += piece
        if len(text := shown(self.raw)) > len(self.text):
            self.text = text
            if self.on_text:
                self.on_text(text)


class RemoteEngine:
    """engine.types.Engine on a model server. Made by connect(); ends with close()."""

    def __init__(self, config: EngineConfig, base_url: str, key: str) -> None:
        self._config = config
        self._base_url = base_url
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=key or "none",
            timeout=openai.Timeout(None, connect=CONNECT_S),
            max_retries=0,  # the queue tries again
        )
        self._offers = Offers("", "")
        self._words: dict[Role, int] = {}
        self._priors: dict[LabelRole, list[float]] = {}
        self._closed = False

    @classmethod
    async def connect(cls, config: EngineConfig, base_url: str, key: str = "") -> RemoteEngine:
        """Find out whether the server at `base_url` has config.model, and what it offers.

        Raises ModelUnavailable when it cannot be reached or fails, and ConfigError: it refuses the key, has no such
        model, or offers neither log-probabilities nor guided choice.
        """
        engine = cls(config, base_url, key)
        try:
            async with engine._asking():
                engine._offers = await engine._found()
        except EngineError as error:
            await engine.close()
            kind = ConfigError if isinstance(error.__cause__, _SETTINGS) else ModelUnavailable
            raise kind(str(error)) from None
        except BaseException:
            await engine.close()
            raise
        return engine

    @property
    def alive(self) -> bool:
        """Whether requests can be answered, as far as it is ours to say."""
        return not self._closed

    @property
    def offers(self) -> Offers:
        """What the server was found to offer."""
        return self._offers

    async def label(self, role: LabelRole, text: str) -> LabelScores:
        """Probabilities of the role's labels for `text`; they sum to 1.

        The score of a label is that of the likeliest first token that begins it; where none of the TOP tokens does,
        that of the last of them, which is its upper bound. It is divided by what the label scores on content-free
        input, as in engine.qwen. Where the tokens begin no label at all they say nothing: all labels are alike. Of a
        server that only chooses, the label it chose gets chat_api.CHOSEN and the others the rest. Raises as write();
        ConfigError as check().
        """
        async with self._asking():
            words = await self._checked(role)
            kept = cut(text, lambda some: words + chat_api.at_most(some), self._config.context_tokens)
            if self._offers.choice:
                return chat_api.one_hot(role, await self._choose(role, kept))
            found = chat_api.log_scores(role, await self._top(chat_api.question(role, kept)))
            shares = chat_api.shares(found) if found else self._priors[role]
            weights = [share / prior for share, prior in zip(shares, self._priors[role], strict=True)]
            return LabelScores({label: each / sum(weights) for label, each in zip(role.labels, weights, strict=True)})

    async def write(
        self, role: TextRole, turns: Sequence[Turn], on_text: OnText | None = None, conversation: str = ""
    ) -> Reply:
        """Answer the last turn, which is the customer's. Cancelling the task closes the stream, and the server stops.

        Prompt and history are held within context_tokens; the reply's tokens come on top. At the deadline the text so
        far is the reply. `conversation` is not told to the server, which may find by itself what it has read before.
        Raises EngineError, DeadlineExceeded before the first token, EngineClosed; ConfigError as check().
        """
        refuse_monologue(turns)
        writing = _Writing(time.monotonic(), on_text)
        try:
            async with self._asking():
                await self._stream(role, turns, writing)
        except DeadlineExceeded:
            if not writing.text:
                raise
            writing.stopped = StopReason.DEADLINE
        if writing.stopped is None:
            raise EngineError(f"the model server at {self._base_url} broke off in the middle of a reply")
        total = time.monotonic() - writing.asked
        return Reply(writing.text, writing.tokens, writing.stopped, writing.first_token_s, total)

    async def check(self, role: Role) -> None:
        """Refuse, before the first message, a role that this model cannot serve.

        Raises ConfigError: two labels begin with the same character, the model thinks of none of them where it is asked
        for one, or the role's words fill context_tokens. Raises as write() when the server fails.
        """
        async with self._asking():
            await self._checked(role)

    async def forget(self, conversation: str) -> None:
        """Nothing is kept here; what the server keeps of texts it has read is the server's own affair."""

    async def close(self) -> None:
        """End the requests in flight with EngineClosed. May be called again."""
        self._closed = True
        await self._client.close()

    # -- what the server offers ----------------------------------------------------------------------

    async def _found(self) -> Offers:
        listed = {each.id: each.owned_by for each in (await self._client.models.list()).data}
        if self._config.model not in listed:
            raise ConfigError(
                f'the model server at {self._base_url} has no model "{self._config.model}": '
                f"set engine.model to one that it has: {', '.join(listed) or 'none'}"
            )
        penalty = OWN_WORDS  # docs/decisions/0002-repetition-penalty.md
        if self._config.penalise_prompt:
            penalty = _PENALTIES.get(listed[self._config.model], OWN_WORDS)
        hello = chat_api.messages("", [Turn(Speaker.USER, "hello")])
        words = ("qxv", "zkw")  # which nobody says to a hello
        if await _unless_refused(self._top(hello)):
            return Offers("", penalty)
        for choice in _CHOICES:
            if await _unless_refused(self._said_of(hello, choice, words)) in words:
                return Offers(choice, penalty)
        raise ConfigError(
            f"the model server at {self._base_url} offers neither log-probabilities nor guided choice, so moods cannot "
            "be read: use vLLM, SGLang or llama.cpp's server"
        )

    # -- roles ---------------------------------------------------------------------------------------

    async def _checked(self, role: Role) -> int:
        """Tokens of the role's own words. Everything that is to be known of a role is found at its first use."""
        if role not in self._words:
            words = await self._measured(role)
            refuse_crowding(role.name, words, self._config.context_tokens)
            if isinstance(role, LabelRole) and not self._offers.choice:
                self._priors[role] = await self._prior(role)
            self._words[role] = words
        return self._words[role]

    async def _measured(self, role: Role) -> int:
        if isinstance(role, LabelRole):
            asked = chat_api.question(role, "")
        else:
            asked = chat_api.messages(role.system, [Turn(Speaker.USER, "")])
        answer = await self._answer(asked, max_tokens=1)
        if answer.usage:
            return answer.usage.prompt_tokens
        return sum(chat_api.at_most(each["content"]) + chat_api.TURN for each in asked)

    async def _prior(self, role: LabelRole) -> list[float]:
        """What each label gets of a text that says nothing."""
        beginnings(role, str, ALIKE)
        asked = [await self._top(chat_api.question(role, text)) for text in CONTENT_FREE]
        found = [scores for top in asked if (scores := chat_api.log_scores(role, top))]
        if not found:
            raise ConfigError(
                f"{self._config.model} at {self._base_url} begins its answer with none of the labels "
                f"{', '.join(role.labels)} of the role {role.name} but with {asked[0][0].token!r}: choose a model that "
                "follows instructions, and switch thinking off at its server"
            )
        shares = [chat_api.shares(scores) for scores in found]
        return [sum(each) / len(shares) for each in zip(*shares, strict=True)]

    # -- requests ------------------------------------------------------------------------------------

    async def _answer(self, messages: Any, **options: Any) -> ChatCompletion:
        answer: ChatCompletion = await self._client.chat.completions.create(
            model=self._config.model, messages=messages, temperature=0, **options
        )
        return answer

    async def _top(self, messages: Any) -> list[TopLogprob]:
        """The likeliest first tokens of an answer, likeliest first; empty where the server does not tell."""
        answer = await self._answer(messages, max_tokens=1, logprobs=True, top_logprobs=TOP)
        told = answer.choices[0].logprobs
        return told.content[0].top_logprobs if told and told.content else []

    async def _choose(self, role: LabelRole, text: str) -> str:
        said = await self._said_of(chat_api.question(role, text), self._offers.choice, role.labels)
        if said not in role.labels:
            raise EngineError(f"the model server at {self._base_url} chose none of the labels of the role {role.name}")
        return said

    async def _said_of(self, messages: Any, choice: str, words: Sequence[str]) -> str:
        """What the server says when it may only say one of `words`."""
        told: object = {"choice": list(words)} if choice == "structured_outputs" else list(words)
        most = max(len(word.encode()) for word in words) + 1
        answer = await self._answer(messages, max_tokens=most, extra_body={choice: told})
        return answer.choices[0].message.content or ""

    async def _stream(self, role: TextRole, turns: Sequence[Turn], writing: _Writing) -> None:
        words = await self._checked(role)
        kept = fit(turns, lambda some: words + chat_api.length(some), self._config.context_tokens)
        penalty = role.repetition_penalty - (self._offers.penalty == OWN_WORDS)
        stream = await self._client.chat.completions.create(
            model=self._config.model,
            messages=chat_api.messages(role.system, kept),
            temperature=role.temperature,
            max_tokens=role.max_new_tokens,
            seed=self._config.seed,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={self._offers.penalty: penalty} if role.repetition_penalty != 1 else None,
        )
        async with stream:
            async for chunk in stream:
                writing.take(chunk)

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """Time for one request, until its deadline. What fails is told in a sentence."""
        if self._closed:
            raise EngineClosed("the engine was closed: start frontdesk again")
        try:
            async with asyncio.timeout(self._config.deadline_s):
                yield
        except FrontdeskError:
            raise
        except Exception as cause:
            raise self._failure(cause) from cause

    def _failure(self, cause: Exception) -> EngineError:
        # Nothing that the server said: it may quote the customer, or the key.
        server = f"the model server at {self._base_url}"
        if self._closed:
            return EngineClosed("the engine was closed before it had answered")
        if isinstance(cause, TimeoutError):
            return DeadlineExceeded(f"{server} had said nothing at the deadline: raise engine.deadline_seconds")
        if isinstance(cause, openai.AuthenticationError | openai.PermissionDeniedError):
            return EngineError(f"{server} refuses the key: set FRONTDESK_ENGINE_API_KEY in the environment or in .env")
        if isinstance(cause, openai.NotFoundError):
            return EngineError(
                f'{server} knows no such address or no model "{self._config.model}" (HTTP 404): check engine.base_url, '
                "which mostly ends in /v1, and engine.model"
            )
        if isinstance(cause, openai.APIStatusError):
            return EngineError(f"{server} answered with HTTP {cause.status_code}: its own log says why")
        if isinstance(cause, openai.APIConnectionError):
            return EngineError(f"{server} cannot be reached or broke off: check engine.base_url, and that it runs")
        return EngineError(f"{server} failed on a request with {type(cause).__name__}: its own log may say why")


async def _unless_refused(answer: Awaitable[Sequence[object]]) -> Sequence[object]:
    """What the server answers; nothing where it refuses an option that it does not have."""
    try:
        return await answer
    except openai.APIStatusError as error:
        if error.status_code not in _REFUSALS:
            raise
        return ()
