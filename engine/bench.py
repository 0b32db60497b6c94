"""How fast the engine is, beside the textbook recipe: transformers in fp32, generate twice, one message after another.

Weights are random at a named shape, since speed does not depend on their values, or those of a model in a directory.
Every variant runs in a process of its own, so that its memory is its own: `python -m engine.bench VARIANT
SHAPE_OR_DIRECTORY CUSTOMERS MESSAGES` prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine import bundled, roles
from engine.chat import Chat
from engine.model import Model, tokenizer_of
from engine.threads import apart
from engine.types import EngineConfig, Speaker, TextRole, Turn

SHAPES: dict[str, dict[str, Any]] = {
    "qwen1.5-0.5b": {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 8_000,
        "max_position_embeddings": 4_096,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
    },
}
"""As their config.json has them; "tiny" is for tests."""
TEXTBOOK, LLAMA = "textbook", "llama.cpp"
SYSTEM, HISTORY, MESSAGE, REPLY = 40, 250, 30, 64
"""Tokens of the work: system prompt, history, new message, reply."""
LABEL_TOKENS = 5
"""What the textbook recipe lets the model write for a mood."""


@dataclass(frozen=True, slots=True)
class Run:
    """One variant with so many customers writing at once. Times are medians over messages."""

    variant: str
    customers: int
    sentiment_ms: float
    first_token_ms: float
    tokens_per_s: float
    seconds_per_message: float
    messages_per_min: float
    rss_gb: float


@dataclass(frozen=True, slots=True)
class Message:
    """What one message took, in seconds since it was picked up."""

    sentiment_s: float
    first_token_s: float
    total_s: float


def bandwidth(seconds: float = 1.0) -> float:
    """Bytes a second that this machine reads from memory with all its threads."""
    block = torch.ones(1 << 26)  # 256 MB, more than any cache
    block.sum()
    read, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        block.sum()
        read += block.nbytes
    return read / (time.perf_counter() - started)


def config_of(shape: str) -> dict[str, Any]:
    """The config of a named shape, or of the model in a directory."""
    if shape in SHAPES:
        return SHAPES[shape]
    found: dict[str, Any] = json.loads((Path(shape) / "config.json").read_text(encoding="utf-8"))
    return found


def bytes_per_token(shape: str, weight_bytes: int) -> int:
    """What one token of a lone reply has to read: every weight but the embedding's other rows."""
    from engine.qwen2 import Shape

    matrices = [size for size in Shape.of(config_of(shape)).sizes().values() if len(size) == 2]
    return sum(out * inner * weight_bytes for out, inner in matrices)  # the embedding is the last layer too


# -- the work ----------------------------------------------------------------------------------------


def words(chat: Chat, tokens: int, seed: int) -> str:
    """A text of as many tokens, give or take one."""
    text, number = "", seed
    while len(chat.encode(text)) < tokens:
        number += 1
        text += ("订单", "什么", "时候", "可以", "收到", "谢谢", "颜色", "尺码")[number % 8] + "，" * (number % 5 == 0)
    return text


def work(chat: Chat, customer: int, number: int) -> tuple[TextRole, list[Turn], str]:
    """The role, the turns and the new message of a customer's message."""
    role = TextRole("reply", words(chat, SYSTEM, 0), max_new_tokens=REPLY)
    history = [
        Turn(speaker, words(chat, HISTORY // 4, customer + place))
        for place, speaker in enumerate((Speaker.USER, Speaker.ASSISTANT) * 2)
    ]
    message = words(chat, MESSAGE, 31 * customer + 7 * number)
    return role, [*history, Turn(Speaker.USER, message)], message


def run(variant: str, shape: str, customers: int, messages: int) -> Run:
    """Measure one variant; the first message of every customer warms up and is not counted."""
    chat = Chat(tokenizer_of(bundled.PATH if shape in SHAPES else Path(shape)))
    if variant == LLAMA:
        from engine.bench_llama import llama  # imports the extra `peers`

        found, wall, memory = llama(chat, shape, customers, messages)
    else:
        measure = _textbook if variant == TEXTBOOK else _engine
        found, wall, memory = measure(chat, variant, shape, customers, messages)
    total = median(each.total_s for each in found)
    writing = [(REPLY - 1) / (each.total_s - each.first_token_s) for each in found]
    return Run(
        variant,
        customers,
        1000 * median(each.sentiment_s for each in found),
        1000 * median(each.first_token_s for each in found),
        median(writing),
        total,
        60 * len(found) / wall,
        memory / 1e9,
    )


def rss() -> float:
    """Bytes of memory in use now; to be asked while the model is still there."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


# -- this engine -------------------------------------------------------------------------------------


def _engine(
    chat: Chat, precision: str, shape: str, customers: int, messages: int
) -> tuple[list[Message], float, float]:
    from engine.qwen import QwenEngine

    # No token ends a reply: each has exactly as many as its role allows. What random weights say repeats itself far
    # more than speech does, so guessing ahead would flatter them.
    options = EngineConfig(seed=1, cache_megabytes=2_000, guess=shape not in SHAPES)
    model = apart(lambda: _model(precision, shape))
    engine = QwenEngine(model.network, model.stops, model.tokenizer, options)
    return asyncio.run(_converse(engine, chat, customers, messages))


def _model(precision: str, shape: str) -> Model:
    from engine.precision import kept_type, make_linear, read_in
    from engine.qwen2 import Qwen2, Shape
    from engine.rows import RowsOnDisk

    if shape not in SHAPES:
        return read_in(Path(shape), precision, lambda share: None)
    sizes, linear = Shape.of(SHAPES[shape]), make_linear(bundled.PATH, precision)
    weights = _RandomWeights(sizes.sizes())

    def rows(name: str) -> RowsOnDisk:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "rows.safetensors"
            save_file({name: weights(name)}, file)
            return RowsOnDisk(file, name)

    network = Qwen2(sizes, weights, rows, linear, kept_type(linear))
    return Model(network, frozenset(), tokenizer_of(bundled.PATH))


class _RandomWeights:
    """Weights by name, made when they are asked for."""

    def __init__(self, sizes: dict[str, list[int]]) -> None:
        self._sizes = sizes
        self._random = torch.Generator().manual_seed(1)

    def __call__(self, name: str) -> Tensor:
        size = self._sizes[name]
        if len(size) == 1:
            return torch.zeros(size) if name.endswith("bias") else torch.ones(size)
        return torch.empty(size, dtype=torch.bfloat16).normal_(std=0.02, generator=self._random)


async def _converse(engine: Any, chat: Chat, customers: int, messages: int) -> tuple[list[Message], float, float]:
    async def say(customer: int, number: int) -> Message:
        role, turns, message = work(chat, customer, number)
        started = time.perf_counter()

        async def mood() -> float:
            await engine.label(roles.sentiment(), message)
            return time.perf_counter() - started

        sentiment, reply = await asyncio.gather(mood(), engine.write(role, turns, None, str(customer)))
        return Message(sentiment, reply.first_token_s, time.perf_counter() - started)

    async def customer(number: int) -> list[Message]:
        return [await say(number, 1 + each) for each in range(messages)]

    await asyncio.gather(*(say(each, 0) for each in range(customers)))
    started = time.perf_counter()
    found = await asyncio.gather(*(customer(each) for each in range(customers)))
    wall = time.perf_counter() - started
    memory = rss()
    await engine.close()
    return [message for each in found for message in each], wall, memory


# -- the textbook recipe -----------------------------------------------------------------------------


def _textbook(
    chat: Chat, variant: str, shape: str, customers: int, messages: int
) -> tuple[list[Message], float, float]:
    """generate() for the mood, generate() for the reply. It serves one message at a time, whoever waits."""
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    model: Any
    if shape in SHAPES:
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPES[shape]))
    else:
        model = AutoModelForCausalLM.from_pretrained(shape, dtype=torch.float32, local_files_only=True)
    model.eval()
    sizes: dict[str, Any] = {"do_sample": True, "eos_token_id": -1, "pad_token_id": 0}

    def say(customer: int, number: int) -> Message:
        role, turns, message = work(chat, customer, number)
        started = time.perf_counter()
        _generate(model, chat.question(roles.sentiment(), message), LABEL_TOKENS, temperature=0.01, **sizes)
        sentiment = time.perf_counter()
        prompt, warmth = chat.prompt(role, turns), {"temperature": 0.7, "repetition_penalty": 1.2, **sizes}
        first = _Clock()
        _generate(model, prompt, REPLY, streamer=first, **warmth)
        return Message(sentiment - started, first.first - started, time.perf_counter() - started)

    with torch.inference_mode():
        say(0, 0)
        started = time.perf_counter()
        found = [say(each, 1 + number) for number in range(messages) for each in range(min(customers, 2))]
        return found, time.perf_counter() - started, rss()


class _Clock:
    """A streamer that notes when the first token came."""

    first = 0.0
    _prompt_seen = False

    def put(self, tokens: object) -> None:
        if self._prompt_seen:
            self.first = self.first or time.perf_counter()
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing to do."""


def _generate(model: Any, prompt: Sequence[int], tokens: int, **options: Any) -> None:
    ids = torch.tensor([list(prompt)])
    model.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens, max_new_tokens=tokens, **options)


def main() -> None:
    variant, shape, customers, messages = sys.argv[1:5]
    print(json.dumps(asdict(run(variant, shape, int(customers), int(messages)))))


if __name__ == "__main__":
    main()
