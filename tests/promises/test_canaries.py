"""No text crosses customers: a model that repeats the secret words of whatever it remembers never says another's.

The weights are made so that the model attends to one kind of token alone, the names in CANARIES, and says the one that
most of its keys and values hold. Each customer has a name of their own and writes it in every message. So whatever
leads from one conversation to another (a prompt, a history, a cache, its memory, a row of a batch, a draft) is said
aloud. The engine, its thread, its caches and the database are the real ones.
"""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import structlog
import torch
from sqlalchemy import Engine
from transformers import Qwen2Config, Qwen2ForCausalLM

from bot.config import Settings
from bot.conversation import Line
from bot.messages import OutboundKind
from bot.model import reply_role
from bot.store.jobs import Claim, JobKind
from bot.store.store import Store
from bot.store.values import Waiting
from engine import qwen
from engine.bundled import tokenizer
from engine.bundled.train import save
from engine.draft import Replies
from engine.kv import Cache, Histories
from engine.model import Model, read
from engine.network import Past, Segment
from engine.quantize import fp32_linear
from engine.qwen import QwenEngine
from engine.types import EngineConfig, LabelRole, OnText, TextRole, Turn
from tests.conftest import inbound, only_sqlite
from tests.house import House, working

CANARIES = [
    f"{first}{second}"
    for first in ["Ba", "Ko", "Li", "Mu", "Ne", "Ri", "Sa"]
    for second in ["dro", "fen", "gul", "kam", "pex", "tov", "wiz", "yob"]
]
CANARIES = CANARIES[:50]
WIDTH = 64
AT_ONCE = 12
"""Conversations that are attended to side by side: more than the draft store guesses for, fewer than the caches."""


# -- a model that cannot keep a secret ---------------------------------------------------------------


def make(directory: Path) -> Path:
    texts = [f" {name}" for name in CANARIES] + [reply_role(Settings()).system]
    words = tokenizer.train(iter(texts * 50), 900)
    names = torch.tensor([_only(words.encode(f" {name}").ids) for name in CANARIES])
    config = Qwen2Config(
        vocab_size=words.get_vocab_size(),
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        rope_theta=1e12,  # the slowest pair of a head does not turn, so that it does not matter how long ago it was
        tie_word_embeddings=True,
    )
    model, generator = Qwen2ForCausalLM(config), torch.Generator().manual_seed(7)
    slow = WIDTH // 2 - 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for norm in (model.model.norm, model.model.layers[0].input_layernorm):
            norm.weight.fill_(1)
        codes = torch.randn(config.vocab_size, WIDTH, generator=generator)
        codes[:, slow] = 0
        codes /= codes.norm(dim=1, keepdim=True)
        codes[names, slow] = 1  # this is what marks a name
        model.model.embed_tokens.weight.copy_(codes)
        attention = model.model.layers[0].self_attn
        attention.q_proj.bias[slow] = 40.0  # everybody asks for names
        attention.k_proj.weight[slow, slow] = 1.0
        value = torch.eye(WIDTH)
        value[slow, slow] = 0
        attention.v_proj.weight.copy_(value)
        attention.o_proj.weight.copy_(10 * torch.eye(WIDTH))
    save(model, words, directory)
    return directory


def _only(tokens: list[int]) -> int:
    (token,) = tokens
    return token


@pytest.fixture(scope="module")
def gossip() -> Iterator[Model]:
    with tempfile.TemporaryDirectory() as folder:
        yield read(make(Path(folder)), fp32_linear, lambda share: None)


def _ids(model: Model) -> dict[int, str]:
    """The names by their tokens."""
    return {_only(model.tokenizer.encode(f" {name}", add_special_tokens=False)): name for name in CANARIES}


# -- what is watched ---------------------------------------------------------------------------------


class Indiscreet(Replies):
    """Guesses the reply that was given last, whoever it was given to and whatever went before."""

    last: Sequence[int] = ()

    def learn(self, opening: Sequence[int], reply: Sequence[int]) -> None:
        self.last = reply

    def after(self, context: Sequence[int], most: int) -> Sequence[int]:
        return self.last[:most]


class Watched:
    """The network and the engine on it. `crossed` counts, by where it was seen, what belongs to somebody else."""

    def __init__(self, model: Model, **options: Any) -> None:
        self.network = model.network
        self.positions, self.begin = self.network.positions, self.network.begin
        self.logits, self.logits_of = self.network.logits, self.network.logits_of
        self.names = _ids(model)
        self.owners: WeakKeyDictionary[Past, str] = WeakKeyDictionary()
        self.crossed: Counter[str] = Counter()
        self.exercised: Counter[str] = Counter()
        self.alive = True
        config = EngineConfig(threads=1, cache_megabytes=3, seed=1, **options)
        self.engine = QwenEngine(self, model.stops, model.tokenizer, config)
        self.engine._replies = Indiscreet()
        self.forget, self.close = self.engine.forget, self.engine.close
        self.begin_writing, self.engine._writing = self.engine._writing, self.writing

    def forward(self, segments: Sequence[Segment]) -> torch.Tensor:
        """A draft may hold anybody's words, but they may not stay: the past of the next step does not have them."""
        if len(segments) == 1:
            time.sleep(0.01)  # others come meanwhile, and the next step is for several
        self.exercised["steps of several"] += len(segments) > 1
        for segment in segments:
            owner = self.owners.get(segment.past)
            if owner is not None:
                self.see("a cache", owner, segment.past.tokens)
                self.exercised["drafts of others"] += bool(self.found(segment.tokens[1:]) - {owner})
        return self.network.forward(segments)

    def writing(self, request: Any) -> Any:
        """A reply begins: whose cache is it, and what does its prompt hold?"""
        writing, owner = self.begin_writing(request), CANARIES[int(request.conversation) - 1]
        self.exercised["caches found again"] += (before := self.owners.get(writing.cache)) is not None
        self.crossed["the owner of a cache"] += before not in (None, owner)
        self.owners[writing.cache] = owner
        self.see("a prompt", owner, [*writing.cache.tokens, *writing.new])
        return writing

    def found(self, tokens: Sequence[int]) -> set[str]:
        return {self.names[token] for token in tokens if token in self.names}

    def see(self, where: str, owner: str, tokens: Sequence[int]) -> None:
        self.crossed[where] += bool(self.found(tokens) - {owner})

    async def label(self, role: LabelRole, text: str) -> Any:
        return await self.engine.label(role, text)

    async def write(
        self, role: TextRole, turns: Sequence[Turn], on_text: OnText | None = None, conversation: str = ""
    ) -> Any:
        owner = CANARIES[int(conversation) - 1]
        self.crossed["a history"] += any(_names_in(turn.text) - {owner} for turn in turns)
        return await self.engine.write(role, turns, on_text, conversation)


def _names_in(text: str) -> set[str]:
    return {name for name in CANARIES if name in text}


async def chatter(model: Model, database: Engine, customers: int, messages: int) -> Watched:
    """Each customer writes so many messages; those of one round are attended to side by side.

    The first message says the name a dozen times, more often than all that follows it in a prompt does: whoever comes
    upon the beginning of another's conversation says their name by a wide majority, and no rounding decides it.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    settings = Settings.model_validate(
        {
            "engine": {"max_new_tokens": 5, "temperature": 0.0, "repetition_penalty": 1.0},
            "limits": {"messages_per_minute": 10_000, "replies_per_minute": 10_000},
            "escalation": {"threshold": 1.0},
        }
    )
    watched, house = Watched(model), House(database, settings)
    house.handlers[JobKind.ATTEND]._engine = watched
    house.queue._concurrency = AT_ONCE
    try:
        async with working(house):
            for number in range(messages):
                # in another order each time: the caches hold a few conversations, so some are found and some are not
                order = random.Random(number).sample(range(customers), customers) if number else range(customers)
                for customer in order:
                    names = " ".join([CANARIES[customer]] * (1 if number else 12))
                    words = f"你好 {names} order {number}"
                    message = inbound(words, event=f"{customer} {number}", customer=f"c{customer}")
                    await house.intake.receive(message)
                await _idle(house)
    finally:
        await watched.close()
        house.writer.close()
    replies = [each for each in house.telegram.sent if each.kind is OutboundKind.REPLY]
    for reply in replies:
        own = CANARIES[int(reply.address.chat.removeprefix("chat-c"))]
        watched.crossed["a reply"] += bool(_names_in(reply.text) - {own})
        watched.exercised["replies with the customer's own"] += own in reply.text
    guessed, right = watched.engine.guesses
    print(
        f"{customers} customers x {messages} messages, {len(replies)} replies, crossed: {dict(+watched.crossed)}; "
        f"{dict(watched.exercised)}, {guessed} tokens guessed, {right} rightly"
    )
    assert len(replies) == customers * messages
    return watched


async def _idle(house: House) -> None:
    async with asyncio.timeout(300):
        while house.reader.load().jobs:  # noqa: ASYNC110 - the database tells, there is no event
            await asyncio.sleep(0.02)


async def nothing_crosses(model: Model, database: Engine, messages: int) -> None:
    watched = await chatter(model, database, customers=50, messages=messages)
    own, replies = watched.exercised["replies with the customer's own"], 50 * messages
    assert own > 0.9 * replies, "this model keeps secrets, and so shows nothing"
    for what in ("steps of several", "caches found again", "drafts of others"):
        assert watched.exercised[what], what
    assert +watched.crossed == {}


@only_sqlite
async def test_no_customer_reads_a_word_of_another(gossip: Model, engine: Engine) -> None:
    await nothing_crosses(gossip, engine, messages=3)


@only_sqlite
@pytest.mark.slow
async def test_no_customer_reads_a_word_of_another_at_length(gossip: Model, engine: Engine) -> None:
    await nothing_crosses(gossip, engine, messages=200)


# -- sabotage ----------------------------------------------------------------------------------------


def anybodys_cache(patch: pytest.MonkeyPatch, names: Set[int]) -> None:
    """Whoever asks for a conversation's cache gets the one that was used last. The engine compares what is in it with
    the prompt, so that alone lets nothing cross; but it is not theirs."""
    patch.setattr(Histories, "take", lambda self, name: self._caches.popitem()[1] if self._caches and name else None)


def anybodys_cache_unread(patch: pytest.MonkeyPatch, names: Set[int]) -> None:
    """And where it is compared, one name counts as another."""
    anybodys_cache(patch, names)
    common = qwen.common

    def alike(one: Sequence[int], other: Sequence[int]) -> int:
        return common(*([-1 if token in names else token for token in tokens] for tokens in (one, other)))

    patch.setattr(qwen, "common", alike)


def one_memory(patch: pytest.MonkeyPatch, names: Set[int]) -> None:
    """All caches lie in the same memory: their tokens are right, what the model remembers of them is not."""
    keys_and_values = torch.zeros(1, 2, 4096, WIDTH)
    patch.setattr(Cache, "_empty", lambda cache, capacity: keys_and_values[:, :, :capacity])


def anybodys_history(patch: pytest.MonkeyPatch, names: Set[int]) -> None:
    """A conversation's settled lines are those of the one before."""
    waiting, last = Store.waiting, list[Line]()

    def mixed(store: Store, claim: Claim) -> Waiting:
        found = waiting(store, claim)
        before = tuple(last) or found.history
        last[:] = found.lines
        return replace(found, history=before)

    patch.setattr(Store, "waiting", mixed)


@only_sqlite
@pytest.mark.parametrize(
    ("sabotage", "where"),
    [
        (anybodys_cache, {"the owner of a cache"}),
        (anybodys_cache_unread, {"the owner of a cache", "a prompt", "a cache", "a reply"}),
        (one_memory, {"a reply"}),
        (anybodys_history, {"a history", "a prompt", "a cache"}),
    ],
)
async def test_what_crosses_is_seen(
    gossip: Model,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    sabotage: Callable[[pytest.MonkeyPatch, Set[int]], None],
    where: set[str],
) -> None:
    sabotage(monkeypatch, _ids(gossip).keys())
    watched = await chatter(gossip, engine, customers=8, messages=2)
    assert where <= (+watched.crossed).keys()
