"""The chat page in a real browser, served by the whole app; only the model is scripted."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import structlog
from playwright.async_api import Browser, Page, async_playwright, expect

from bot.app import App, build
from bot.catalogue import say
from bot.config import Secrets, parse
from bot.store.database import upgrade
from tests.conftest import until
from tests.fakes.engine import ScriptedEngine

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
ANGRY = "我的订单三天没到，太差了"


class Gradual(ScriptedEngine):
    """Writes as `pace` allows, and judges before it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.pace = asyncio.Event()
        self.pace.set()

    async def write(self, role, turns, on_text=None, conversation=""):  # type: ignore[no-untyped-def]  # as the port
        words = self.answer(turns)
        if on_text is not None:
            on_text(words[:6])
        await self.pace.wait()
        return await super().write(role, turns, on_text, conversation)


@dataclass(frozen=True, slots=True)
class Desk:
    """The running app and its engine."""

    app: App
    engine: Gradual


@asynccontextmanager
async def opened(folder: Path, password: str = "") -> AsyncIterator[Desk]:
    url = f"sqlite:///{folder}/frontdesk.db"
    upgrade(url)
    document = {"business": {"name": "晨光小店"}, "web": {"port": 0}, "database": {"url": url}}
    settings = parse(document, Secrets(web_password=password))
    engine, stop = Gradual(), asyncio.Event()
    app = build(settings, engine)
    serving = asyncio.create_task(app.run(stop))
    try:
        await until(lambda: bool(app.url))
        yield Desk(app, engine)
    finally:
        stop.set()
        await serving
        await app.close()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with opened(tmp_path) as desk:
        yield desk


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    flags = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    async with async_playwright() as playwright:
        sandbox = os.geteuid() != 0  # Chromium refuses its sandbox to root
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=flags, chromium_sandbox=sandbox)
        yield browser
        await browser.close()


async def visit(browser: Browser, url: str, language: str = "zh-CN") -> Page:
    context = await browser.new_context(locale=language)
    page = await context.new_page()
    await page.goto(url)
    await expect(page.get_by_role("textbox")).to_be_enabled(timeout=20_000)
    return page


async def write(page: Page, words: str) -> None:
    box = page.get_by_role("textbox")
    await box.fill(words)
    await box.press("Enter")


@needs_browser
async def test_the_mood_appears_first_the_reply_grows_below_it_and_a_reload_shows_both(
    desk: Desk, chromium: Browser
) -> None:
    asked: list[str] = []
    page = await visit(chromium, desk.app.url)
    page.on("request", lambda request: asked.append(request.url))
    desk.engine.pace.clear()
    await write(page, ANGRY)
    await expect(page.get_by_text("😢 负面")).to_be_visible()
    await expect(page.get_by_text("answer", exact=True)).to_be_visible()
    desk.engine.pace.set()
    await expect(page.get_by_text(f"answer to: {ANGRY}")).to_be_visible()
    await expect(page.get_by_text(say("human_called", "zh"))).to_be_visible()
    mood, reply = [await page.get_by_text(words).bounding_box() for words in ("😢 负面", f"answer to: {ANGRY}")]
    assert mood is not None
    assert reply is not None
    assert mood["y"] < reply["y"]
    await page.reload()
    for words in ("😢 负面", f"answer to: {ANGRY}", say("human_called", "zh")):
        await expect(page.get_by_text(words)).to_have_count(1)
    assert [url for url in asked if not url.startswith((desk.app.url, "data:", "blob:"))] == []


@needs_browser
async def test_what_is_said_later_appears_without_asking_for_it(desk: Desk, chromium: Browser) -> None:
    page = await visit(chromium, desk.app.url, "en-US")
    await write(page, "hello")
    await expect(page.get_by_text("answer to: hello")).to_be_visible()
    other_tab = await page.context.new_page()
    await other_tab.goto(desk.app.url)
    await write(other_tab, "written elsewhere")
    await expect(page.get_by_text("answer to: written elsewhere")).to_be_visible()


@needs_browser
async def test_two_visitors_never_see_each_other_and_a_new_conversation_starts_empty(
    desk: Desk, chromium: Browser
) -> None:
    one, other = await visit(chromium, desk.app.url), await visit(chromium, desk.app.url)
    await write(one, "my canary is yellow")
    await expect(one.get_by_text("answer to: my canary is yellow")).to_be_visible()
    await write(other, "and mine is green")
    await expect(other.get_by_text("answer to: and mine is green")).to_be_visible()
    await expect(other.get_by_text("yellow")).to_have_count(0)
    await one.get_by_role("button", name=say("page_new", "zh")).click()
    await expect(one.get_by_text("yellow")).to_have_count(0)
    await asyncio.sleep(2.5)  # the page has asked for later messages meanwhile
    await expect(one.get_by_text("yellow")).to_have_count(0)


@needs_browser
async def test_markup_in_a_message_is_shown_and_never_run(desk: Desk, chromium: Browser) -> None:
    alerts: list[str] = []
    page = await visit(chromium, desk.app.url)
    page.on("dialog", lambda dialog: alerts.append(dialog.message))
    attack = '<img src=x onerror="alert(1)"><script>alert(2)</script> **bold** [x](http://evil.example)'
    await write(page, attack)
    await expect(page.get_by_text(f"answer to: {attack}")).to_be_visible()
    assert await page.locator(".message img[src='x'], .message a, .message strong").count() == 0
    assert alerts == []


@needs_browser
async def test_a_database_that_is_away_leaves_the_words_in_the_box(desk: Desk, chromium: Browser) -> None:
    page = await visit(chromium, desk.app.url, "en-US")
    desk.app.intake.close()
    await write(page, "keep me")
    await expect(page.get_by_text(say("page_away", "en"))).to_be_visible()
    await expect(page.get_by_role("textbox")).to_have_value("keep me")


@needs_browser
async def test_with_a_password_only_who_knows_it_sees_the_page(tmp_path: Path, chromium: Browser) -> None:
    async with opened(tmp_path, password="open sesame") as desk:
        context = await chromium.new_context(locale="en-US")
        page = await context.new_page()
        await page.goto(desk.app.url)
        user, password = page.get_by_label("username"), page.get_by_label("password")
        await user.fill("frontdesk")
        await password.fill("open sesame")
        await page.get_by_role("button", name="Login").click()
        await expect(page.get_by_placeholder(say("page_write", "en"))).to_be_enabled(timeout=20_000)


async def test_health_and_metrics_stand_beside_the_page(desk: Desk) -> None:
    async with aiohttp.ClientSession(desk.app.url) as client:
        async with client.get("/health") as answer:
            assert (answer.status, (await answer.json())["well"]) == (200, True)
        async with client.get("/metrics") as answer:
            assert "frontdesk_open_escalations 0.0" in await answer.text()
        async with client.get("/") as answer:
            assert answer.status == 200
            assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]
            assert "googleapis" not in await answer.text()


async def test_a_page_that_others_can_reach_without_a_password_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.app.is_loopback", lambda host: False)
    with structlog.testing.capture_logs() as logs:
        async with opened(tmp_path):
            pass
    assert any("FRONTDESK_WEB_PASSWORD" in line["event"] for line in logs if line["log_level"] == "warning")
