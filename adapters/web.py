"""The chat page: the mood of a message appears first, the answer grows below it.

A visitor is known by a random token that only their browser holds; what is stored, and what agents see, is its hash.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gradio as gr
from gradio.themes import Default
from starlette.applications import Starlette

from adapters.local import LocalAdapter
from adapters.text import as_command
from bot.errors import DatabaseUnavailable
from bot.messages import (
    MARKS,
    Address,
    Customer,
    Delivery,
    InboundKind,
    InboundMessage,
    OutboundMessage,
    Platform,
    Preview,
    Sentiment,
)

FETCH_S = 2.0
"""How often a page asks for what was said later, by a colleague for instance."""
WATCH_S = 300.0
"""How long one message is watched; whatever comes later is fetched."""
STALE_S = 10.0
"""A preview that was not renewed for so long belongs to a reply that nobody writes any more."""
MAX_CHARS = 4_000
"""What the page lets a visitor type; limits.max_text_chars holds for what comes another way."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")  # what secrets.token_urlsafe(32) makes

Bubble = dict[str, Any]
"""One message as Gradio's Chatbot takes it: role and content."""


class Line(Protocol):
    """One line of the stored history, as the visitor has seen it."""

    @property
    def author(self) -> str: ...
    @property
    def kind(self) -> InboundKind: ...
    @property
    def text(self) -> str: ...
    @property
    def sentiment(self) -> Sentiment | None: ...
    @property
    def outcome(self) -> str | None: ...


History = Callable[[Address, str], Awaitable[Sequence[Line]]]


@dataclass(frozen=True, slots=True)
class _Live:
    """What is being written just now."""

    preview: Preview
    at: float


class WebAdapter(LocalAdapter):
    """A platform that is asked, not told: the page fetches what is there."""

    platform = Platform.WEB

    def __init__(self, history: History, emoji: Callable[[str], str]) -> None:
        super().__init__(emoji)
        self._history = history
        self._live: dict[str, _Live] = {}

    async def send(self, message: OutboundMessage) -> Delivery:
        """What is stored is what the page shows, so there is nothing left to do but to end the preview."""
        self._live.pop(message.address.chat, None)
        return Delivery(message.id)

    async def preview(self, preview: Preview) -> str:
        self._live[preview.address.chat] = _Live(preview, time.monotonic())
        return ""

    async def is_member(self, chat: str, person: str) -> bool:
        return False

    # -- what the page asks ------------------------------------------------------------------------

    async def hear(self, visitor: str, text: str, language: str) -> None:
        """A visitor says something. Raises DatabaseUnavailable: it was not stored."""
        words = text.strip()
        command = as_command(words, MARKS[self.platform])
        message = InboundMessage(
            _place(visitor),
            Customer(visitor, language=language),
            secrets.token_hex(16),
            command or words,
            InboundKind.COMMAND if command else InboundKind.TEXT,
        )
        inbox = await self.inbox()
        await inbox.receive(message)

    async def show(self, visitor: str) -> list[Bubble]:
        """The conversation as it stands. Raises DatabaseUnavailable."""
        return to_bubbles(await self._history(_place(visitor), visitor), self._preview_for(visitor), self._emoji)

    async def watch(self, visitor: str) -> AsyncIterator[list[Bubble]]:
        """The conversation as it grows, until the newest message has its answer. Raises DatabaseUnavailable."""
        end = time.monotonic() + WATCH_S
        while time.monotonic() < end:
            lines = await self._history(_place(visitor), visitor)
            preview = self._preview_for(visitor)
            yield to_bubbles(lines, preview, self._emoji)
            if preview is None and not any(_waits(line) for line in lines):
                return
            async for newer in self._changes(visitor, preview, time.monotonic() + 1):
                yield to_bubbles(lines, newer, self._emoji)

    async def _changes(self, visitor: str, shown: Preview | None, until: float) -> AsyncIterator[Preview]:
        """Every new preview, until there is none any more or it is time to look at the history again."""
        while time.monotonic() < until:
            await asyncio.sleep(0.05)
            preview = self._preview_for(visitor)
            if preview is None and shown is not None:
                return
            if preview is not None and preview != shown:
                yield preview
                shown = preview

    def _preview_for(self, visitor: str) -> Preview | None:
        live = self._live.get(visitor)
        if live is not None and time.monotonic() - live.at > STALE_S:
            live = self._live.pop(visitor, None) and None
        return live.preview if live else None


def visitor_of(token: str) -> str:
    """Who holds `token`, under a name that gives nobody else the token."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]


def to_bubbles(lines: Sequence[Line], preview: Preview | None, emoji: Callable[[str], str]) -> list[Bubble]:
    """What the page shows: each message, its mood below it, then the answer; at the end what is being written."""
    bubbles: list[Bubble] = []
    for line in lines:
        if line.author == "customer":
            slash = "/" * (line.kind is InboundKind.COMMAND)
            bubbles.append(_bubble("user", slash + line.text))
            bubbles += _mood(line.sentiment, emoji)
        else:
            bubbles.append(_bubble("assistant", line.text))
    if preview is not None:
        if not any(line.sentiment for line in lines if _waits(line)):
            bubbles += _mood(preview.sentiment, emoji)
        bubbles.append(_bubble("assistant", preview.text or "…"))
    return bubbles


def _mood(sentiment: Sentiment | None, emoji: Callable[[str], str]) -> list[Bubble]:
    if sentiment is None:
        return []
    return [_bubble("assistant", f"{emoji(sentiment.label)} {sentiment.label}")]


def _bubble(role: str, text: str) -> Bubble:
    """Gradio takes a text for HTML also where it renders no Markdown."""
    return {"role": role, "content": html.escape(text, quote=False)}


def _waits(line: Line) -> bool:
    return line.author == "customer" and line.outcome is None


def _place(visitor: str) -> Address:
    return Address(Platform.WEB, "web", visitor)


# -- the page --------------------------------------------------------------------------------------

Say = Callable[[str, str], str]
"""(key of the catalogue, the browser's language) -> sentence."""

THEME = Default(
    primary_hue="teal",
    neutral_hue="slate",
    font=(
        "faces",
        "system-ui",
        "-apple-system",
        "Segoe UI",
        "Noto Sans",
        "Noto Sans CJK SC",
        "Microsoft YaHei",
        "sans-serif",
    ),
    font_mono=("ui-monospace", "monospace"),
)
CSS = """
@font-face {
  font-family: "faces";
  src: local("Noto Color Emoji"), local("Apple Color Emoji"), local("Segoe UI Emoji");
  unicode-range: U+1F300-1FAFF;
}
.gradio-container { width: 100%; max-width: 46rem !important; margin: 0 auto !important; }
.icon-button-wrapper.top-panel { display: none; }
"""


def mount(app: Starlette, adapter: WebAdapter, shop: str, say: Say, login: tuple[str, str] | None) -> None:
    """Serve the page at "/", behind a user name and password where there is a `login`."""
    page = build_page(adapter, shop, say)
    gr.mount_gradio_app(
        app,  # the annotation says FastAPI, what is used is Starlette's
        page,
        "/",
        auth=login,
        theme=THEME,
        css=CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        show_error=False,
        max_file_size=1,  # the page takes no files, but Gradio has a route for them
    )


def build_page(adapter: WebAdapter, shop: str, say: Say) -> gr.Blocks:
    """The page of one shop."""
    page: gr.Blocks = gr.Blocks(title=shop or "frontdesk", analytics_enabled=False, fill_height=True)
    with page:
        # The secret hides nothing, the page has it; one that stays lets a token outlive this process.
        token = gr.BrowserState("", storage_key="frontdesk", secret="frontdesk")  # noqa: S106 - see above
        seen = gr.State("")
        with gr.Row():
            gr.Markdown(f"# {shop or 'frontdesk'}")
            fresh = gr.Button(say("page_new", ""), size="sm", scale=0, min_width=96)
        chat = gr.Chatbot(
            show_label=False,
            render_markdown=False,
            feedback_options=None,
            buttons=[],
            scale=1,
            placeholder=say("page_welcome", ""),
        )
        box = gr.Textbox(
            show_label=False,
            placeholder=say("page_write", ""),
            submit_btn=True,
            max_length=MAX_CHARS,
            autofocus=True,
            interactive=False,  # until the visitor is known
        )

        async def arrive(token: str, request: gr.Request) -> tuple[Any, ...]:
            code = _language(request)
            token = token if _TOKEN.fullmatch(token) else secrets.token_urlsafe(32)
            try:
                said = await adapter.show(visitor_of(token))
            except DatabaseUnavailable:
                said = []
            return (
                token,
                gr.update(value=said, placeholder=say("page_welcome", code)),
                gr.update(placeholder=say("page_write", code), interactive=True),
                gr.update(value=say("page_new", code)),
            )

        async def hear(text: str, token: str, request: gr.Request) -> tuple[Any, ...]:
            if not text.strip() or not _TOKEN.fullmatch(token):
                return gr.skip(), gr.skip()
            code = _language(request)
            try:
                await adapter.hear(visitor_of(token), text, code)
                return "", await adapter.show(visitor_of(token))
            except DatabaseUnavailable:
                gr.Warning(say("page_away", code))
                return gr.skip(), gr.skip()

        async def watch(token: str) -> AsyncIterator[Any]:
            try:
                async for said in adapter.watch(visitor_of(token)):
                    yield said
            except DatabaseUnavailable:
                yield gr.skip()

        async def fetch(token: str, seen: str) -> tuple[Any, str]:
            try:
                said = await adapter.show(visitor_of(token))
            except DatabaseUnavailable:
                return gr.skip(), seen
            digest = hashlib.sha256(repr(said).encode()).hexdigest()
            return (said, digest) if digest != seen else (gr.skip(), seen)

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        page.load(arrive, [token], [token, chat, box, fresh], **quiet)
        box.submit(hear, [box, token], [box, chat], trigger_mode="multiple", **quiet).then(
            watch, [token], [chat], **quiet
        )
        fresh.click(lambda: (secrets.token_urlsafe(32), []), None, [token, chat], **quiet)
        gr.Timer(FETCH_S).tick(fetch, [token, seen], [chat, seen], queue=False, **quiet)
    return page


def _language(request: gr.Request) -> str:
    """The first language of the browser's list, "" when it names none."""
    return re.split("[,;]", request.headers.get("accept-language", ""))[0].strip()
