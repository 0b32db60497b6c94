"""The whole house between two platforms: a customer on one, an agent on the other or on the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters import telegram as telegram_adapter
from adapters.pace import Limit
from bot.app import build
from bot.catalogue import say
from bot.config import Secrets, parse
from bot.store.database import upgrade
from tests.conftest import until
from tests.fakes.engine import ScriptedEngine
from tests.fakes.slack import FakeSlack
from tests.fakes.telegram import TOKEN, FakeTelegram

CUSTOMER, AGENT, OTHER, GROUP = 7, 42, 43, -100500
ANGRY = "我的订单三天没到，太差了"


@dataclass(slots=True)
class Town:
    """Both platforms, with the house between them."""

    telegram: FakeTelegram
    slack: FakeSlack


@asynccontextmanager
async def town(folder: Path, staff: str, *, with_slack: bool) -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        slack, telegram = FakeSlack(), FakeTelegram()
        await stack.enter_async_context(slack)
        await stack.enter_async_context(telegram)
        slack.add_channel("C0AGENTS", "agents")
        slack.members["C0AGENTS"] = ["UANNA", "UBO"]
        telegram.add_group(GROUP)
        telegram.people = {AGENT: "member", OTHER: "member"}
        url = f"sqlite:///{folder}/frontdesk.db"
        upgrade(url)
        document = {
            "telegram": {"enabled": True, "api_url": telegram.url},
            "slack": {"enabled": with_slack, "api_url": slack.url},
            "web": {"enabled": False, "port": 0},
            "escalation": {"channel": staff},
            "database": {"url": url},
        }
        secrets = Secrets(telegram_token=TOKEN, slack_bot_token=slack.bot_token, slack_app_token=slack.app_token)
        app, stop = build(parse(document, secrets), ScriptedEngine()), asyncio.Event()
        serving = asyncio.create_task(app.run(stop))
        if with_slack:
            await slack.connected()
        yield Town(telegram, slack)
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


@dataclass(slots=True)
class OnTelegram:
    town: Town

    async def writes(self, text: str) -> None:
        self.town.telegram.customer_writes(CUSTOMER, text)

    def sees(self) -> list[str]:
        return self.town.telegram.texts(CUSTOMER)


@dataclass(slots=True)
class OnSlack:
    town: Town

    async def writes(self, text: str) -> None:
        await self.town.slack.direct_message("UCUST", text)

    def sees(self) -> list[str]:
        return self.town.slack.said("DUCUST")


# -- agents


@dataclass(slots=True)
class SlackStaff:
    """An agent in the Slack channel."""

    town: Town

    def cards(self) -> list[str]:
        return [each["text"] for each in self.town.slack.by_bot("C0AGENTS") if "thread_ts" not in each]

    def thread(self) -> list[str]:
        return [each["text"] for each in self.town.slack.by_bot("C0AGENTS") if "thread_ts" in each]

    async def press(self, label: str) -> None:
        await self.town.slack.press_button(self.town.slack.by_bot("C0AGENTS")[0], "UANNA", label)

    async def writes(self, text: str, *, other: bool = False) -> None:
        card = self.town.slack.by_bot("C0AGENTS")[0]["ts"]
        await self.town.slack.thread_message("C0AGENTS", "UBO" if other else "UANNA", text, card)

    def marks(self) -> list[str]:
        return [name for _, name in self.town.slack.reactions]


@dataclass(slots=True)
class TelegramStaff:
    """An agent in the Telegram group."""

    town: Town

    def cards(self) -> list[str]:
        return [each.text for each in self.town.telegram.sent(GROUP) if not each.reply_to]

    def thread(self) -> list[str]:
        return [each.text for each in self.town.telegram.sent(GROUP) if each.reply_to]

    async def press(self, label: str) -> None:
        self.town.telegram.presses(self.town.telegram.sent(GROUP)[0], label, user_id=AGENT)

    async def writes(self, text: str, *, other: bool = False) -> None:
        card = self.town.telegram.sent(GROUP)[0].message_id
        answered = {"message_id": card, "from": {"id": self.town.telegram.bot_id, "is_bot": True}}
        who = OTHER if other else AGENT
        self.town.telegram.customer_writes(GROUP, text, user_id=who, reply_to_message=answered)

    def marks(self) -> list[str]:
        return [{"👌": "white_check_mark", "👎": "x"}[face] for _, face in self.town.telegram.reactions]


PAIRS = [
    pytest.param("slack:C0AGENTS", OnTelegram, SlackStaff, True, id="telegram customer, slack agent"),
    pytest.param("slack:C0AGENTS", OnSlack, SlackStaff, True, id="slack customer, slack agent"),
    pytest.param(f"telegram:{GROUP}", OnSlack, TelegramStaff, True, id="slack customer, telegram agent"),
    pytest.param(f"telegram:{GROUP}", OnTelegram, TelegramStaff, False, id="telegram alone"),
]
Make = Callable[[Town], OnTelegram | OnSlack]
Hire = Callable[[Town], SlackStaff | TelegramStaff]


@pytest.mark.parametrize(("channel", "customers", "staff", "with_slack"), PAIRS)
async def test_from_the_first_angry_word_to_the_last_answer(
    tmp_path: Path, channel: str, customers: Make, staff: Hire, with_slack: bool
) -> None:
    async with town(tmp_path, channel, with_slack=with_slack) as place:
        customer, agents = customers(place), staff(place)
        await customer.writes(ANGRY)
        await until(lambda: len(agents.cards()) == 1 and say("human_called", "zh") in customer.sees())
        assert ANGRY in agents.cards()[0]

        await agents.press("接手")
        await until(lambda: say("human_joined", "zh") in customer.sees())
        await until(lambda: "✋" in agents.cards()[0])

        await customer.writes("在吗？")
        await until(lambda: any("在吗？" in each for each in agents.thread()))
        await agents.writes("// 这位客户很急")
        await agents.writes("您好，马上帮您查")
        await until(lambda: "您好，马上帮您查" in customer.sees())
        await until(lambda: agents.marks() == ["white_check_mark"])
        await agents.writes("我也来", other=True)
        await until(lambda: len(agents.thread()) == 2)

        await agents.press("已解决")
        await until(lambda: say("human_resolved", "zh") in customer.sees())
        await customer.writes("谢谢")
        await until(lambda: "answer to: 谢谢" in customer.sees())
        assert not {"// 这位客户很急", "我也来"} & set(customer.sees())
        assert customer.sees().count("answer to: 在吗？") == 0
        assert len(agents.cards()) == 1


@pytest.mark.parametrize(("channel", "customers", "staff", "with_slack"), PAIRS)
async def test_who_is_forgotten_is_so_among_the_agents_too(
    tmp_path: Path, channel: str, customers: Make, staff: Hire, with_slack: bool
) -> None:
    async with town(tmp_path, channel, with_slack=with_slack) as place:
        customer, agents = customers(place), staff(place)
        await customer.writes(ANGRY)
        await until(lambda: len(agents.cards()) == 1)
        await agents.press("接手")
        await customer.writes("地址是红旗路 5 号")
        await until(lambda: len(agents.thread()) == 1)
        await customer.writes("/forget yes" if isinstance(customer, OnTelegram) else "!forget yes")
        await until(lambda: agents.thread() == [] and say("reason_erased", "en") in agents.cards()[0])
        assert len(agents.cards()[0].splitlines()) == 1


async def test_an_agent_hears_why_their_words_did_not_arrive(tmp_path: Path) -> None:
    async with town(tmp_path, "slack:C0AGENTS", with_slack=True) as place:
        customer, agents = OnTelegram(place), SlackStaff(place)
        await customer.writes(ANGRY)
        await until(lambda: len(agents.cards()) == 1)
        await agents.press("接手")
        await until(lambda: say("human_joined", "zh") in customer.sees())
        place.telegram.blocked.add(CUSTOMER)
        await agents.writes("hello?")
        await until(lambda: agents.marks() == ["x"])
        await until(lambda: any("blocked by the user" in each for each in agents.thread()))
