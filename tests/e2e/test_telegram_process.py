"""The real program against a Telegram of our own: kill -9 between fetch and answer, at every stage of the way."""

from __future__ import annotations

from pathlib import Path

from bot.catalogue import say
from tests.conftest import GROUP, until
from tests.e2e.program import Program
from tests.fakes.telegram import TOKEN, FakeTelegram, Fault

PEOPLE = range(101, 109)


def configured(folder: Path, telegram: FakeTelegram) -> Program:
    sections = f'[telegram]\nenabled = true\napi_url = "{telegram.url}"'
    return Program(folder, f"telegram:{GROUP}", sections, {"FRONTDESK_TELEGRAM_TOKEN": TOKEN})


async def answered(telegram: FakeTelegram, program: Program) -> list[int]:
    """How many answers each customer got, once nothing is left to do."""
    for person in PEOPLE:
        await telegram.answers(person, 1)
    await until(lambda: program.rows("SELECT count(*) FROM jobs") == [(0,)], 20)
    return [len(telegram.sent(person)) for person in PEOPLE]


async def test_nothing_is_lost_or_doubled_when_killed_before_the_updates_are_confirmed(
    telegram: FakeTelegram, tmp_path: Path
) -> None:
    async with configured(tmp_path, telegram) as program:
        await until(lambda: bool(telegram.offsets))
        for person in PEOPLE:
            telegram.customer_writes(person, "hello there")
        await until(lambda: bool(program.rows("SELECT 1 FROM messages")))
        await program.kill()
        await program.start()
        assert await answered(telegram, program) == [1] * len(PEOPLE)
    assert len(program.rows("SELECT 1 FROM messages WHERE author = 'customer'")) == len(PEOPLE)


async def test_nothing_is_lost_or_doubled_when_killed_after_they_are_confirmed_and_before_they_are_answered(
    telegram: FakeTelegram, tmp_path: Path
) -> None:
    async with configured(tmp_path, telegram) as program:
        await until(lambda: bool(telegram.offsets))
        for person in PEOPLE:
            telegram.customer_writes(person, "hello there")
        await telegram.confirmed()
        await program.kill()
        unanswered = [person for person in PEOPLE if not telegram.sent(person)]
        assert unanswered, "the kill came too late to show anything"
        await program.start()
        assert await answered(telegram, program) == [1] * len(PEOPLE)


async def test_a_kill_in_the_middle_of_a_send_costs_at_most_one_visible_duplicate(
    telegram: FakeTelegram, tmp_path: Path
) -> None:
    async with configured(tmp_path, telegram) as program:
        await until(lambda: bool(telegram.offsets))
        telegram.fail("sendMessage", Fault(silent=True, done=True))
        telegram.customer_writes(PEOPLE[0], "hello there")
        await until(lambda: bool(telegram.sent(PEOPLE[0])))
        await program.kill()
        await program.start()
        await until(lambda: program.rows("SELECT state FROM outbound") == [("sent",)], 20)
    assert len(telegram.sent(PEOPLE[0])) == 2
    assert len({sent.text for sent in telegram.sent(PEOPLE[0])}) == 1


async def test_telegram_alone_is_a_complete_set_up(telegram: FakeTelegram, tmp_path: Path) -> None:
    async with configured(tmp_path, telegram) as program:
        telegram.customer_writes(PEOPLE[0], "/human")
        (answer,) = await telegram.answers(PEOPLE[0], 1)
        (card,) = await telegram.answers(GROUP, 1)
        assert await program.terminate() == 0
    assert answer.text in (say("human_called", "en"), say("human_called", "zh"))
    assert str(PEOPLE[0]) in card.text
    assert "CANARY" not in program.said()
