"""The whole house between two platforms: a customer on one, an agent on the other or on the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapters import telegram as telegram_adapter
from adapters.pace import Limit
from adapters.web import WebAdapter
from bot.app import App, build
from bot.catalogue import say
from bot.config import Secrets, parse
from bot.messages import Platform
from bot.store.database import upgrade
from tests.conftest import until
from tests.fakes.engine import ScriptedEngine
from tests.fakes.slack import FakeSlack
from tests.fakes.telegram import TOKEN, FakeTelegram, Sent

CUSTOMER, AGENT, OTHER, GROUP = 7, 42, 43, -100500
ANGRY = "我的订单三天没到，太差了"
PHOTO: dict[str, Any] = {"photo": [{"file_id": "x", "file_unique_id": "x", "width": 9, "height": 9}]}


@dataclass(slots=True)
class Town:
    """Both platforms, with the house between them."""

    telegram: FakeTelegram
    slack: FakeSlack
    app: App


@asynccontextmanager
async def town(folder: Path, where: Pair) -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        slack, telegram = FakeSlack(), FakeTelegram()
        await stack.enter_async_context(slack)
        await stack.enter_async_context(telegram)
        slack.add_channel("C0AGENTS", "agents")
        slack.members["C0AGENTS"] = ["UANNA", "UBO"]
        telegram.add_group(GROUP, forum=where.staff is TopicStaff, manages_topics=True)
        telegram.people = {AGENT: "member", OTHER: "member"}
        url = f"sqlite:///{folder}/frontdesk.db"
        upgrade(url)
        document = {
            "telegram": {"enabled": True, "api_url": telegram.url},
            "slack": {"enabled": where.with_slack, "api_url": slack.url},
            "web": {"enabled": where.customer is OnThePage, "port": 0},
            "escalation": {"channel": where.staff.channel, "names": {"UANNA": "Anna", str(AGENT): "Anna"}},
            "database": {"url": url},
        }
        secrets = Secrets(telegram_token=TOKEN, slack_bot_token=slack.bot_token, slack_app_token=slack.app_token)
        app, stop = build(parse(document, secrets), ScriptedEngine()), asyncio.Event()
        serving = asyncio.create_task(app.run(stop))
        if where.with_slack:
            await slack.connected()
        yield Town(telegram, slack, app)
        stop.set()
        await serving
        await app.close()
        assert telegram.violations == slack.violations == []


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, no_proxy: None, impatient_queue: None) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(telegram_adapter, "IN_A_CHAT", Limit(100, 1.0))
    monkeypatch.setattr(telegram_adapter, "IN_A_GROUP", Limit(1_000, 60.0))


# -- customers


class OnTelegram:
    platform = "telegram"
    forgets = "/forget yes"

    def __init__(self, town: Town) -> None:
        self.town = town

    async def writes(self, text: str) -> None:
        self.town.telegram.customer_writes(CUSTOMER, text)

    async def sends_a_photo(self, caption: str) -> None:
        self.town.telegram.customer_writes(CUSTOMER, caption=caption, **PHOTO)

    async def sees(self) -> list[str]:
        return self.town.telegram.texts(CUSTOMER)

    def copies(self) -> int:
        return len([each for each in self.town.telegram.sent(CUSTOMER) if each.copied])

    async def presses(self, label: str) -> None:
        self.town.telegram.presses(self.town.telegram.sent(CUSTOMER)[-1], label)


class OnSlack:
    platform = "slack"
    forgets = "!forget yes"

    def __init__(self, town: Town) -> None:
        self.town = town

    async def writes(self, text: str) -> None:
        await self.town.slack.direct_message("UCUST", text)

    async def sends_a_photo(self, caption: str) -> None:
        await self.town.slack.direct_message("UCUST", caption, subtype="file_share", files=[self.town.slack.put_file()])

    async def sees(self) -> list[str]:
        return self.town.slack.said("DUCUST")

    def copies(self) -> int:
        return len(self.town.slack.shown("DUCUST"))

    async def presses(self, label: str) -> None:
        await self.town.slack.press_button(self.town.slack.by_bot("DUCUST")[-1], "UCUST", label)


class OnThePage:
    platform = "web"
    forgets = "/forget yes"

    def __init__(self, town: Town) -> None:
        page = town.app.adapters[Platform.WEB]
        assert isinstance(page, WebAdapter)
        self.page = page

    async def writes(self, text: str) -> None:
        await self.page.hear("visitor", text, "zh")

    async def sees(self) -> list[str]:
        bubbles = await self.page.show("visitor")
        return [each["content"] for each in bubbles if each["role"] == "assistant"]


Customer = OnTelegram | OnSlack | OnThePage


# -- agents


class SlackStaff:
    """An agent in the Slack channel."""

    platform, channel = "slack", "slack:C0AGENTS"

    def __init__(self, town: Town) -> None:
        self.town = town

    def cards(self) -> list[str]:
        return [each["text"] for each in self.town.slack.by_bot("C0AGENTS") if "thread_ts" not in each]

    def thread(self) -> list[str]:
        said = [*self.town.slack.by_bot("C0AGENTS"), *self.town.slack.whispers]
        return [each["text"] for each in said if "thread_ts" in each and "files" not in each]

    def copies(self) -> int:
        return len(self.town.slack.shown("C0AGENTS"))

    async def press(self, label: str) -> None:
        await self.town.slack.press_button(self.town.slack.by_bot("C0AGENTS")[0], "UANNA", label)

    async def writes(self, text: str, *, other: bool = False, **more: Any) -> None:
        card = self.town.slack.by_bot("C0AGENTS")[0]["ts"]
        await self.town.slack.thread_message("C0AGENTS", "UBO" if other else "UANNA", text, card, **more)

    async def sends_a_photo(self) -> None:
        await self.writes("", subtype="file_share", files=[self.town.slack.put_file()])

    async def edits(self, text: str) -> None:
        """What Anna wrote last."""
        messages = self.town.slack.channels["C0AGENTS"].messages
        mine = [each for each in messages if each["user"] == "UANNA"][-1]
        now = {**mine, "text": text, "edited": {"user": "UANNA", "ts": "9.1"}}
        event = {"type": "message", "subtype": "message_changed", "channel": "C0AGENTS", "channel_type": "channel"}
        await self.town.slack.deliver({**event, "message": now, "previous_message": mine, "ts": "9.2"})

    def marks(self) -> list[str]:
        return [name for _, name in self.town.slack.reactions]


class TelegramStaff:
    """An agent in the Telegram group, who answers the card."""

    platform, channel = "telegram", f"telegram:{GROUP}"

    def __init__(self, town: Town) -> None:
        self.town = town

    def _card(self) -> Sent:
        return self.town.telegram.sent(GROUP)[0]

    def cards(self) -> list[str]:
        return [each.text for each in self.town.telegram.sent(GROUP) if not each.reply_to]

    def thread(self) -> list[str]:
        return [each.text for each in self.town.telegram.sent(GROUP) if each.reply_to and not each.copied]

    def copies(self) -> int:
        return len([each for each in self.town.telegram.sent(GROUP) if each.copied])

    async def press(self, label: str) -> None:
        self.town.telegram.presses(self._card(), label, user_id=AGENT)

    def _where(self) -> dict[str, Any]:
        bot = {"id": self.town.telegram.bot_id, "is_bot": True}
        return {"reply_to_message": {"message_id": self._card().message_id, "from": bot}}

    async def writes(self, text: str, *, other: bool = False, **more: Any) -> None:
        who = OTHER if other else AGENT
        self.town.telegram.customer_writes(GROUP, text, user_id=who, **self._where(), **more)

    async def sends_a_photo(self) -> None:
        await self.writes("", **PHOTO)

    async def edits(self, text: str) -> None:
        """What was written last."""
        (last,) = [each for each in self.town.telegram.written if each["chat"]["id"] == GROUP][-1:]
        self.town.telegram.push(edited_message={**last, "text": text, "edit_date": last["date"] + 1})

    def marks(self) -> list[str]:
        return [{"👌": "white_check_mark", "👎": "x"}[face] for _, face in self.town.telegram.reactions]


class TopicStaff(TelegramStaff):
    """An agent in a Telegram group that has topics, who writes into the one of the escalation."""

    def cards(self) -> list[str]:
        return [self._card().text] if self.town.telegram.sent(GROUP) else []

    def thread(self) -> list[str]:
        return [each.text for each in self.town.telegram.sent(GROUP)[1:] if each.thread and not each.copied]

    def _where(self) -> dict[str, Any]:
        return {"message_thread_id": self._card().thread, "is_topic_message": True}


Staff = SlackStaff | TelegramStaff


@dataclass(frozen=True, slots=True)
class Pair:
    """Who talks to whom."""

    customer: type[Customer]
    staff: type[Staff]
    with_slack: bool = True

    def __str__(self) -> str:
        alone = "" if self.with_slack else ", without Slack"
        return f"{self.customer.__name__} and {self.staff.__name__}{alone}"


PAIRS = [
    Pair(OnTelegram, SlackStaff),
    Pair(OnThePage, SlackStaff),
    Pair(OnSlack, SlackStaff),
    Pair(OnSlack, TelegramStaff),
    Pair(OnThePage, TelegramStaff),
    Pair(OnTelegram, TelegramStaff, with_slack=False),
    Pair(OnTelegram, TopicStaff, with_slack=False),
    Pair(OnSlack, TopicStaff),
]


async def sees(customer: Customer, condition: Callable[[list[str]], bool]) -> None:
    """Wait until what a customer sees is as it should be."""
    async with asyncio.timeout(10):
        while not condition(await customer.sees()):  # noqa: ASYNC110 - tests look from outside, there is no event
            await asyncio.sleep(0.01)


async def called(place: Town, where: Pair) -> tuple[Customer, Staff]:
    """An angry customer whom an agent has claimed."""
    customer, agents = where.customer(place), where.staff(place)
    await customer.writes(ANGRY)
    await until(lambda: len(agents.cards()) == 1)
    await sees(customer, lambda seen: say("human_called", "zh") in seen)
    assert ANGRY in agents.cards()[0]
    await agents.press("接手")
    await sees(customer, lambda seen: say("human_joined", "zh", name="Anna") in seen)
    await until(lambda: "✋" in agents.cards()[0])
    return customer, agents


@pytest.mark.parametrize("where", PAIRS, ids=str)
async def test_from_the_first_angry_word_to_the_last_answer(tmp_path: Path, where: Pair) -> None:
    async with town(tmp_path, where) as place:
        customer, agents = await called(place, where)
        await customer.writes("在吗？")
        await until(lambda: any("在吗？" in each for each in agents.thread()))
        await agents.writes("// 这位客户很急")
        await agents.writes("您好，马上帮您查")
        await sees(customer, lambda seen: "您好，马上帮您查" in seen)
        await until(lambda: agents.marks() == ["white_check_mark"])
        await agents.edits("您好，今天就补发")
        await sees(customer, lambda seen: "您好，今天就补发" in seen and "您好，马上帮您查" not in seen)
        await agents.writes("我也来", other=True)
        await until(lambda: any("我也来" in each or "claim" in each or "接手" in each for each in agents.thread()))

        await agents.press("已解决")
        await sees(customer, lambda seen: say("human_resolved", "zh") in seen)
        if not isinstance(customer, OnThePage):
            await sees(customer, lambda seen: seen[-1] == say("ask_score", "zh"))
            await customer.presses("4")
            await until(lambda: say("card_score", "zh", score=4) in agents.cards()[0])
        await customer.writes("谢谢")
        await sees(customer, lambda seen: "answer to: 谢谢" in seen)
        await until(lambda: "↩️" in agents.cards()[0])
        assert not {"// 这位客户很急", "我也来", "answer to: 在吗？"} & set(await customer.sees())
        assert len(agents.cards()) == 1
        if isinstance(agents, TopicStaff):
            group = place.telegram.chats[GROUP]
            assert list(group.topics.values()) == ["🔔 #1 客户不满意 0.95"]
            assert group.closed == group.topics.keys()


@pytest.mark.parametrize("where", [each for each in PAIRS if each.customer is not OnThePage], ids=str)
async def test_media_go_to_the_same_platform_and_are_named_on_another(tmp_path: Path, where: Pair) -> None:
    async with town(tmp_path, where) as place:
        customer, agents = await called(place, where)
        assert not isinstance(customer, OnThePage)
        await customer.sends_a_photo("杯子碎了")
        await until(lambda: any("[photo]" in each and "杯子碎了" in each for each in agents.thread()))
        if customer.platform == "slack":
            assert any("https://fake.example/F1" in each for each in agents.thread())
        await agents.sends_a_photo()
        if customer.platform == agents.platform:
            await until(lambda: agents.marks() == ["white_check_mark"])
            assert agents.copies() == customer.copies() == 1
        else:
            await until(lambda: agents.marks() == ["x"])
            await until(
                lambda: any(each in agents.thread() for each in (say("media_across", "en"), say("media_across", "zh")))
            )


@pytest.mark.parametrize("where", PAIRS, ids=str)
async def test_who_is_forgotten_is_so_among_the_agents_too(tmp_path: Path, where: Pair) -> None:
    async with town(tmp_path, where) as place:
        customer, agents = await called(place, where)
        await customer.writes("地址是红旗路 5 号")
        await until(lambda: len(agents.thread()) == 1)
        await customer.writes(customer.forgets)
        await until(lambda: agents.thread() == [] and say("reason_erased", "en") in agents.cards()[0])
        assert len(agents.cards()[0].splitlines()) == 1


async def test_an_agent_hears_why_their_words_did_not_arrive(tmp_path: Path) -> None:
    where = Pair(OnTelegram, SlackStaff)
    async with town(tmp_path, where) as place:
        _, agents = await called(place, where)
        place.telegram.blocked.add(CUSTOMER)
        await agents.writes("hello?")
        await until(lambda: agents.marks() == ["x"])
        await until(lambda: any("blocked by the user" in each for each in agents.thread()))
