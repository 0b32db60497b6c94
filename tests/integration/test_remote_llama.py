"""The engine for servers on a real one, llama-cpp-python's, which serves the bundled model: it says what our own says.

Slow, and skipped where the extra dev-llama is not installed: llama.cpp is compiled for minutes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.errors import ConfigError
from engine import bundled, roles
from engine.qwen import QwenEngine
from engine.remote import RemoteEngine
from engine.types import EngineConfig, Speaker, StopReason, TextRole, Turn
from tests.conftest import until
from tests.integration.test_bundled_model import CONTENT, MISREAD, UNHAPPY

for library in ("llama_cpp.server.app", "gguf"):
    pytest.importorskip(library, reason="the extra dev-llama is not installed")

pytestmark = pytest.mark.slow

REPLY = roles.reply("", temperature=0.0, repetition_penalty=1.0)
QUESTIONS = ["你好", "Good morning!", "你们周末开门吗", "How long does shipping take?", "可以开电子发票吗？"]
ENDLESS = TextRole("endless", "", temperature=2.0, repetition_penalty=1.0, max_new_tokens=1000)
"""So hot that the end of a turn seldom comes."""
STARTS_WITHIN_S = 60


def write_gguf(file: Path) -> None:
    """The bundled model in 32 bits, with its tokenizer and its chat template."""
    import gguf
    import torch
    from safetensors.torch import load_file

    from engine.bench_llama import begin_file, end_file, named
    from engine.qwen2 import Shape

    config = json.loads((bundled.PATH / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((bundled.PATH / "tokenizer.json").read_text(encoding="utf-8"))
    template = json.loads((bundled.PATH / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    writer = begin_file(Shape.of(config), file, gguf.LlamaFileType.ALL_F32)
    special = {each["id"]: each["content"] for each in tokenizer["added_tokens"]}
    words = {number: word for word, number in tokenizer["model"]["vocab"].items()} | special
    kinds = [gguf.TokenType.CONTROL if each in special else gguf.TokenType.NORMAL for each in range(len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([words[each] for each in range(len(words))])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)
    for name, weight in load_file(bundled.PATH / "model.safetensors").items():
        writer.add_tensor(named(name), weight.to(torch.float32).numpy())
    end_file(writer)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the server is; it runs as long as the tests."""
    folder = tmp_path_factory.mktemp("llama")
    write_gguf(folder / "bundled.gguf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"model": folder / "bundled.gguf", "model_alias": "bundled", "host": "127.0.0.1", "port": port}
    options |= {"n_ctx": 2048, "n_threads": 2, "api_key": "canary-4711"}
    options |= {"interrupt_requests": "false"}  # else a request ends the stream of the one before
    command = [sys.executable, "-m", "llama_cpp.server"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    yield f"http://127.0.0.1:{port}/v1"
    process.terminate()
    process.wait(20)


async def connected(address: str, **options: Any) -> RemoteEngine:
    """As soon as the server answers."""
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")

    async def answers() -> bool:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return False
        writer.close()
        return True

    async with asyncio.timeout(STARTS_WITHIN_S):
        while not await answers():  # noqa: ASYNC110 - another process, which tells nobody
            await asyncio.sleep(0.1)
    return await RemoteEngine.connect(EngineConfig(model="bundled", seed=1, **options), address, "canary-4711")


@pytest.fixture
async def remote(address: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RemoteEngine]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    engine = await connected(address)
    yield engine
    await engine.close()


@pytest.fixture
async def own() -> AsyncIterator[QwenEngine]:
    engine = await asyncio.to_thread(QwenEngine.load, EngineConfig(precision="fp32", threads=1), bundled.PATH)
    yield engine
    await engine.close()


async def test_what_the_server_offers_is_found(remote: RemoteEngine) -> None:
    assert str(remote.offers).startswith("moods from log-probabilities; frequency_penalty")


async def test_where_the_prompt_is_to_be_penalised_as_well_the_servers_own_penalty_is_used(
    remote: RemoteEngine, address: str
) -> None:
    other = await connected(address, penalise_prompt=True)
    assert str(other.offers).startswith("moods from log-probabilities; repeat_penalty")
    await other.close()


async def test_a_wrong_key_is_refused(remote: RemoteEngine, address: str) -> None:
    with pytest.raises(ConfigError, match="FRONTDESK_ENGINE_API_KEY"):
        await RemoteEngine.connect(EngineConfig(model="bundled"), address, "wrong")


async def test_moods_are_those_of_our_own_engine(remote: RemoteEngine, own: QwenEngine) -> None:
    role, differences = roles.sentiment(), dict[str, float]()
    for text in [*UNHAPPY, *CONTENT, *MISREAD]:
        here, there = await own.label(role, text), await remote.label(role, text)
        differences[text] = abs(here.probabilities["负面"] - there.probabilities["负面"])
    print("moods differ by at most", max(differences.values()))
    assert max(differences.values()) < 0.01, differences


async def test_greedy_replies_are_those_of_our_own_engine(remote: RemoteEngine, own: QwenEngine) -> None:
    turns: list[Turn] = []
    for question in QUESTIONS:
        turns.append(Turn(Speaker.USER, question))
        seen: list[str] = []
        here, there = await own.write(REPLY, turns), await remote.write(REPLY, turns, seen.append)
        assert (there.text, there.stopped) == (here.text, StopReason.END)
        assert seen[-1] == there.text
        turns.append(Turn(Speaker.ASSISTANT, here.text))


async def test_replies_side_by_side_come_to_their_end(remote: RemoteEngine) -> None:
    replies = await asyncio.gather(*(remote.write(REPLY, [Turn(Speaker.USER, each)]) for each in QUESTIONS))
    assert all(reply.text and reply.stopped is StopReason.END for reply in replies)


async def test_a_cancelled_reply_gives_the_server_back_at_once(remote: RemoteEngine) -> None:
    loop, seen = asyncio.get_running_loop(), list[str]()
    await remote.check(ENDLESS)
    started = loop.time()
    whole = await remote.write(ENDLESS, [Turn(Speaker.USER, "hello")])
    took = loop.time() - started
    task = asyncio.create_task(remote.write(ENDLESS, [Turn(Speaker.USER, "hello")], seen.append))
    await until(lambda: len(seen) > 5)
    task.cancel()
    started = loop.time()
    await remote.label(roles.sentiment(), "你好")
    waited = loop.time() - started
    print(f"{whole.tokens} tokens took {took:.2f} s; the next request after a cancelled one took {waited:.2f} s")
    assert waited < took / 2
