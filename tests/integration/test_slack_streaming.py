"""An answer streamed to a Slack thread is one message, whatever happens on its way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from adapters import slack_preview
from adapters.slack import OUTBOUND, SlackAdapter
from bot.errors import DeliveryError, RetryLater, Undeliverable
from bot.messages import Address, OutboundKind, OutboundMessage, Platform, Preview
from tests.fakes.slack import FakeSlack, Fault

BOT_TOKEN, APP_TOKEN = "xoxb-fake", "xapp-fake"
START, APPEND, STOP = "chat.startStream", "chat.appendStream", "chat.stopStream"
STATUS = "assistant.threads.setStatus"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slack_preview, "APPEND_S", 0.0)


@pytest.fixture
def adapter(slack: FakeSlack) -> SlackAdapter:
    return SlackAdapter(BOT_TOKEN, APP_TOKEN, slack.url)


@pytest.fixture
def question(slack: FakeSlack) -> Preview:
    """A question in a channel, and the preview of its answer."""
    root = slack.say("C1", "U1", "hello")["ts"]
    return Preview(Address(Platform.SLACK, "T0FAKE", "C1", root), "U1", 7, reply_to=root)


def answer(question: Preview, text: str, edits: str = "") -> OutboundMessage:
    return OutboundMessage("o1", OutboundKind.REPLY, question.address, text, question.reply_to, edits)


async def test_the_answer_grows_and_is_finished_in_place(
    slack: FakeSlack, adapter: SlackAdapter, question: Preview
) -> None:
    begun = await adapter.preview(replace(question, text="good"))
    assert await adapter.preview(replace(question, text="good mor")) == ""
    (growing,) = slack.by_bot("C1")
    assert (growing["ts"], growing["text"], growing["streaming"]) == (begun, "good mor", True)
    delivery = await adapter.send(answer(question, "good morning", begun))
    (finished,) = slack.by_bot("C1")
    assert (delivery.platform_id, finished["text"], finished["streaming"]) == (begun, "good morning", False)
    assert finished["metadata"] == {"event_type": OUTBOUND, "event_payload": {"id": "o1"}}
    assert slack.called("chat.postMessage") == []


async def test_slack_is_told_whom_the_answer_is_for(slack: FakeSlack, adapter: SlackAdapter, question: Preview) -> None:
    await adapter.preview(replace(question, text="<!channel> a"))
    (started,) = slack.called(START)
    assert (started["recipient_team_id"], started["recipient_user_id"]) == ("T0FAKE", "U1")
    assert started["markdown_text"] == "&lt;!channel&gt; a"


async def test_until_there_are_words_a_status_is_shown_and_not_renewed_at_once(
    slack: FakeSlack, adapter: SlackAdapter, question: Preview
) -> None:
    await adapter.preview(question)
    await adapter.preview(question)
    (status,) = slack.statuses
    assert (status["channel_id"], status["thread_ts"]) == ("C1", question.reply_to)


async def test_where_there_is_no_status_it_is_asked_for_once(
    slack: FakeSlack, adapter: SlackAdapter, question: Preview
) -> None:
    slack.fail(STATUS, Fault(error="missing_scope"))
    await adapter.preview(question)
    await adapter.preview(replace(question, reply_to=slack.say("C1", "U1", "more")["ts"]))
    assert len(slack.called(STATUS)) == 1


@pytest.mark.parametrize(
    ("breaks", "error"),
    [
        pytest.param(lambda slack: slack.expire_streams(), Undeliverable, id="Slack ended the stream"),
        pytest.param(lambda slack: slack.fail(APPEND, Fault(retry_after=7)), RetryLater, id="a flood limit"),
    ],
)
async def test_what_ends_the_preview_does_not_end_the_answer(
    slack: FakeSlack,
    adapter: SlackAdapter,
    question: Preview,
    breaks: Callable[[FakeSlack], None],
    error: type[DeliveryError],
) -> None:
    begun = await adapter.preview(replace(question, text="good"))
    breaks(slack)
    with pytest.raises(error):
        await adapter.preview(replace(question, text="good mor"))
    await adapter.send(answer(question, "good morning", begun))
    assert slack.said("C1") == ["good morning"]


async def test_a_finish_that_was_cut_off_is_done_again_without_a_second_copy(
    slack: FakeSlack, adapter: SlackAdapter, question: Preview
) -> None:
    begun = await adapter.preview(replace(question, text="good"))
    slack.fail("chat.update", Fault(retry_after=1))
    with pytest.raises(RetryLater):
        await adapter.send(answer(question, "good morning", begun))
    await adapter.send(replace(answer(question, "good morning", begun), maybe_sent=True))
    assert slack.said("C1") == ["good morning"]


async def test_what_an_earlier_process_began_is_finished_and_nothing_new_begun(
    slack: FakeSlack, adapter: SlackAdapter, question: Preview
) -> None:
    begun = await adapter.preview(replace(question, text="good"))
    later = SlackAdapter(BOT_TOKEN, APP_TOKEN, slack.url)
    assert await later.preview(replace(question, text="other", begun=begun)) == ""
    await later.send(answer(question, "other words", begun))
    assert slack.said("C1") == ["other words"]


async def test_once_a_human_took_over_the_stream_ends_as_it_is(
    slack: FakeSlack, adapter: SlackAdapter, question: Preview
) -> None:
    await adapter.preview(replace(question, text="good"))
    await adapter.preview(replace(question, over=True))
    (seen,) = slack.by_bot("C1")
    assert (seen["text"], seen["streaming"]) == ("good", False)


async def test_no_more_streams_are_begun_than_slack_allows(
    slack: FakeSlack, adapter: SlackAdapter, question: Preview
) -> None:
    begun = [await adapter.preview(replace(question, number=number, text="good")) for number in range(1, 31)]
    assert len([each for each in begun if each]) == len(slack.called(START)) == slack_preview.STREAMS.messages


async def test_additions_keep_their_distance(
    slack: FakeSlack, adapter: SlackAdapter, question: Preview, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slack_preview, "APPEND_S", 60.0)
    for text in ("g", "go", "goo", "good"):
        await adapter.preview(replace(question, text=text))
    assert slack.said("C1") == ["go"]
