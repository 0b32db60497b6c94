"""A model server on a loopback port that speaks OpenAI's language as vLLM, SGLang and llama.cpp's server do.

    async with FakeModelServer(owned_by="vllm") as server:
        ...  # start an engine, or a whole process, with server.url and server.key
        server.says = ["Hel", "lo"]           # the pieces of the next replies; HANG, BREAK and QUIT are pieces, too
        server.top = lambda text: {"正": -0.1}  # the likeliest first tokens of an answer to `text`, likeliest first
        server.asked                          # the body of every chat completion
        server.dropped                        # how many streams the client closed before their end

`offers` holds what it has: "logprobs", "structured_outputs", "guided_choice". What it lacks it ignores, as most servers
do, or refuses with `refusal`. `status` breaks every request, with a body that quotes the customer and the key.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from aiohttp import web

HANG = "<hang>"
BREAK = "<break>"
QUIT = "<quit>"


class FakeModelServer:
    def __init__(self, owned_by: str = "vllm", offers: Sequence[str] = ("logprobs",), refusal: int = 0) -> None:
        self.owned_by, self.offers, self.refusal = owned_by, offers, refusal
        self.model, self.key, self.status = "shop-model", "canary-4711", 200
        self.says: list[str] = ["Hel", "lo", "!"]
        self.pace_s = 0.0
        self.top: Callable[[str], Mapping[str, float]] = lambda text: {"正": -0.5, "负": -1.0, "x": -3.0}
        self.chooses: Callable[[str, list[str]], str] = lambda text, words: words[0]
        self.asked: list[dict[str, Any]] = []
        self.dropped = 0
        app = web.Application()
        app.add_routes([web.get("/v1/models", self._models), web.post("/v1/chat/completions", self._complete)])
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused(request):
            return refused
        return web.json_response({"object": "list", "data": [{"id": self.model, "owned_by": self.owned_by}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        if refused := self._refused(request, body):
            return refused
        if body.get("stream"):
            return await self._stream(request)
        if HANG in self.says:
            await asyncio.sleep(3_600)
        return web.json_response(self._answer(body))

    def _refused(self, request: web.Request, body: Mapping[str, Any] | None = None) -> web.StreamResponse | None:
        asks = {"logprobs", "structured_outputs", "guided_choice"} & (body or {}).keys()
        status = self.status
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            status = 401
        if self.refusal and asks - set(self.offers):
            status = self.refusal
        words = f"refused: {request.headers.get('Authorization')} {body}"
        return web.json_response({"error": {"message": words}}, status=status) if status != 200 else None

    def _answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"]
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": "".join(self.says)}}
        choice |= {"finish_reason": "length", "logprobs": None}
        words = (body.get("structured_outputs") or {}).get("choice") or body.get("guided_choice")
        if words and {"structured_outputs", "guided_choice"} & body.keys() & set(self.offers):
            choice["message"]["content"] = self.chooses(text, words)
        if body.get("logprobs") and "logprobs" in self.offers:
            told = [{"token": token, "logprob": score, "bytes": None} for token, score in self.top(text).items()]
            choice["logprobs"] = {"content": [{**told[0], "top_logprobs": told}]}
        read = sum(len(each["content"]) // 2 + 4 for each in body["messages"])
        usage = {"prompt_tokens": read, "completion_tokens": 1, "total_tokens": read + 1}
        return {"id": "1", "object": "chat.completion", "model": self.model, "choices": [choice], "usage": usage}

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for piece in self.says:
                if piece == BREAK:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                if piece == QUIT:
                    return response
                await asyncio.sleep(3_600 if piece == HANG else self.pace_s)
                await _send(response, {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        except (asyncio.CancelledError, ConnectionResetError):
            self.dropped += 1
            raise
        await _send(response, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        await _send(response, {"choices": [], "usage": {"completion_tokens": 2 * len(self.says), "prompt_tokens": 1}})
        await response.write(b"data: [DONE]\n\n")
        return response


async def _send(response: web.StreamResponse, event: Mapping[str, Any]) -> None:
    whole = {"id": "1", "object": "chat.completion.chunk", **event}
    await response.write(f"data: {json.dumps(whole, ensure_ascii=False)}\n\n".encode())
