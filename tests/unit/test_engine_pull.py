"""engine.load.pull against a hub of our own on the loopback; each pull is a process of its own, as HF_ENDPOINT asks."""

import asyncio
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import pytest
from aiohttp import web
from safetensors.numpy import save

from engine import bundled

COMMIT = "c" * 40
MIB = 1 << 20

PULL = """
import json, os, sys
from bot.errors import ModelUnavailable
from engine import load

seen = []
def progress(done, total):
    seen.append((done, total))
    if done >= int(os.environ.get("DIE_AT", total + 1)):
        os._exit(9)

model, revision = sys.argv[1:]
try:
    path = load.resolve(model, revision) if os.environ.get("LOOK_FIRST") else None
    path = path or load.pull(model, revision, progress)
    print(json.dumps({"path": str(path), "same": str(load.resolve(model, revision)), "progress": seen}))
except ModelUnavailable as error:
    print(json.dumps({"error": str(error)}))
"""


@dataclass
class Hub:
    """A hub that holds one model and keeps what it was asked for."""

    files: dict[str, bytes]
    breaks_after: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    listed: int = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/models/shop/{name}/revision/{revision}", self.info)
        app.router.add_get("/shop/tiny/resolve/{revision}/{file:.+}", self.resolve)
        app.router.add_get("/cdn/{file:.+}", self.content)
        return app

    async def info(self, request: web.Request) -> web.Response:
        self.listed += 1
        if request.match_info["name"] != "tiny":
            return web.json_response({}, status=404, headers={"X-Error-Code": "RepoNotFound"})
        if request.match_info["revision"] not in ("main", COMMIT):
            return web.json_response({}, status=404, headers={"X-Error-Code": "RevisionNotFound"})
        siblings = [self._sibling(name, content) for name, content in self.files.items()]
        return web.json_response({"id": "shop/tiny", "sha": COMMIT, "siblings": siblings})

    def _sibling(self, name: str, content: bytes) -> dict[str, object]:
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        sibling = {"rfilename": name, "size": len(content), "blobId": git}
        if name.endswith((".safetensors", ".bin")):
            digest = hashlib.sha256(content).hexdigest()
            sibling |= {"blobId": "d" * 40, "lfs": {"sha256": digest, "size": len(content), "pointerSize": 130}}
        return sibling

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        assert request.match_info["revision"] == COMMIT
        if request.match_info["file"].endswith(".safetensors"):
            raise web.HTTPFound(f"/cdn/{request.match_info['file']}")
        return await self.content(request)

    async def content(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["file"]
        self.asked.append((name, request.headers.get("Range", "")))
        start = request.http_range.start or 0
        content = self.files[name]
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        response = web.StreamResponse(status=206, headers=headers)
        response.content_length = len(content) - start
        await response.prepare(request)
        if self.breaks_after and len(content) > self.breaks_after > start:
            await response.write(content[start : self.breaks_after])
            assert request.transport
            request.transport.close()
            return response
        for place in range(start, len(content), MIB):
            await response.write(content[place : place + MIB])
        return response

    def ranges(self, name: str) -> list[str]:
        return [asked for file, asked in self.asked if file == name]


@pytest.fixture
def hub() -> Hub:
    weights = numpy.random.default_rng(0).integers(0, 256, 3 * MIB, dtype=numpy.uint8)
    files = {name: (bundled.PATH / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    files |= {"model.safetensors": save({"x": weights}), "pytorch_model.bin": b"pickle", "README.md": b"card"}
    return Hub(files)


@pytest.fixture
async def endpoint(hub: Hub) -> AsyncIterator[str]:
    runner = web.AppRunner(hub.app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def pull(
    home: Path, endpoint: str, model: str = "shop/tiny", revision: str = "", **env: str
) -> dict[str, object]:
    """What a process that pulls `model` reports; {} when it dies."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", PULL, model, revision),
        env={"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home), "HF_ENDPOINT": endpoint, **env},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return json.loads(output) if output else {}


def partial(home: Path) -> list[int]:
    """Sizes of the unfinished files in the cache."""
    return [file.stat().st_size for file in home.rglob("*.incomplete")]


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def spoil(file: Path) -> None:
    blob = file.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")


async def test_a_pull_brings_what_is_needed_and_nothing_else(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    report = await pull(tmp_path, endpoint)
    path = tmp_path / "hub/models--shop--tiny/snapshots" / COMMIT
    assert report["path"] == report["same"] == str(path)
    wanted = {"config.json", "tokenizer.json", "model.safetensors"}
    assert contents(path) == {name: hub.files[name] for name in wanted}
    assert {name for name, _ in hub.asked} == wanted
    total = sum(len(hub.files[name]) for name in wanted)
    assert report["progress"][0] == [0, total]
    assert report["progress"][-1] == [total, total]


async def test_a_download_killed_halfway_is_taken_up_where_it_ended(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    assert await pull(tmp_path, endpoint, DIE_AT=str(2 * MIB)) == {}
    (had,) = partial(tmp_path)
    assert MIB <= had < len(hub.files["model.safetensors"])
    report = await pull(tmp_path, endpoint)
    assert hub.ranges("model.safetensors") == ["bytes=0-", f"bytes={had}-"]
    assert (Path(str(report["path"])) / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert partial(tmp_path) == []


async def test_a_connection_that_breaks_is_taken_up_within_the_same_pull(
    hub: Hub, endpoint: str, tmp_path: Path
) -> None:
    hub.breaks_after = 2 * MIB
    report = await pull(tmp_path, endpoint)
    assert "path" in report
    assert len(hub.ranges("model.safetensors")) == 2


async def test_what_is_here_is_not_fetched_again_and_what_is_damaged_is(
    hub: Hub, endpoint: str, tmp_path: Path
) -> None:
    path = Path(str((await pull(tmp_path, endpoint))["path"]))
    hub.asked.clear()
    report = await pull(tmp_path, endpoint)
    assert hub.asked == []
    assert len({tuple(step) for step in report["progress"]}) == 1
    spoil(path / "model.safetensors")
    await pull(tmp_path, endpoint)
    assert [name for name, _ in hub.asked] == ["model.safetensors"]
    assert (path / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


async def test_a_cached_model_is_found_without_asking_the_hub(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    await pull(tmp_path, endpoint)
    report = await pull(tmp_path, endpoint, LOOK_FIRST="1")
    assert "path" in report
    assert hub.listed == 1


@pytest.mark.parametrize(
    ("model", "revision", "words"),
    [
        ("shop/unknown", "", "has no model shop/unknown"),
        ("shop/tiny", "nope", "shop/tiny has no revision nope"),
        ("no such id", "", "neither a directory nor a hub id"),
    ],
)
async def test_what_the_hub_does_not_have_is_said(
    endpoint: str, tmp_path: Path, model: str, revision: str, words: str
) -> None:
    report = await pull(tmp_path, endpoint, model, revision)
    assert words in str(report["error"])
    assert "\n" not in str(report["error"])


async def test_a_model_without_safetensors_is_refused(hub: Hub, endpoint: str, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    assert "no safetensors weights" in str((await pull(tmp_path, endpoint))["error"])
    assert hub.asked == []


async def test_a_hub_that_refuses_the_connection_is_given_up_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    report = await pull(tmp_path, "http://127.0.0.1:9", "Qwen/Qwen1.5-0.5B-Chat", LOOK_FIRST="1")
    assert time.monotonic() - started < 5
    for advice in ("frontdesk model pull", "HF_ENDPOINT", "local directory", '"bundled"'):
        assert advice in str(report["error"])


async def test_a_hub_that_never_answers_is_given_up_within_five_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        report = await pull(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", LOOK_FIRST="1")
        assert time.monotonic() - started < 5
    assert "cannot be asked for it" in str(report["error"])
