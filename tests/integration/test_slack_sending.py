"""The Slack adapter sends to a Slack of our own: nothing twice, and each refusal says what to do. And it is checked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adapters.slack
import adapters.slack_api
from adapters.slack import OUTBOUND, SlackAdapter, check, find_channels
from adapters.slack_api import MAX_CHARS
from adapters.slack_blocks import BLOCK_CHARS, escape
from bot.errors import ConfigError, OutcomeUnknown, RetryLater, Undeliverable
from bot.messages import Address, OutboundKind, OutboundMessage, Platform, Preview
from tests.fakes.slack import FakeSlack, Fault

BOT_TOKEN, APP_TOKEN = "xoxb-fake", "xapp-fake"
POST, HISTORY, REPLIES = "chat.postMessage", "conversations.history", "conversations.replies"


@pytest.fixture
def adapter(slack: FakeSlack) -> SlackAdapter:
    return SlackAdapter(BOT_TOKEN, APP_TOKEN, slack.url)


def outbound(text: str = "hello", chat: str = "DU1", id: str = "o1", **more: Any) -> OutboundMessage:
    return OutboundMessage(id, OutboundKind.REPLY, Address(Platform.SLACK, "T0FAKE", chat), text, **more)


# -- where, and how


async def test_an_answer_arrives_where_the_customer_wrote(slack: FakeSlack, adapter: SlackAdapter) -> None:
    event = await slack.direct_message("U1", "hello")
    await adapter.send(outbound("hi"))
    delivery = await adapter.send(outbound("hi there", reply_to=event.ts))
    flat, threaded = await slack.posted("DU1", 2)
    assert ("thread_ts" in flat, threaded["thread_ts"]) == (False, event.ts)
    assert delivery.platform_id == threaded["ts"]
    assert threaded["metadata"] == {"event_type": OUTBOUND, "event_payload": {"id": "o1"}}
    assert adapter.last_contact is not None


async def test_under_an_answer_that_can_be_rated_are_two_thumbs(slack: FakeSlack, adapter: SlackAdapter) -> None:
    slack.add_channel("DU1")
    await adapter.send(outbound("a < b", id="a" * 32, rateable=True))
    said, thumbs = slack.by_bot("DU1")[0]["blocks"]
    assert (said["text"]["text"], said["text"]["verbatim"]) == ("a &lt; b", True)
    (buttons,) = thumbs["elements"]
    assert buttons["positive_button"]["value"] == f"up:{'a' * 32}"
    assert buttons["negative_button"]["value"] == f"down:{'a' * 32}"


async def test_where_slack_takes_no_thumbs_the_answer_goes_without(slack: FakeSlack, adapter: SlackAdapter) -> None:
    slack.add_channel("DU1")
    slack.fail(POST, Fault(error="invalid_blocks"))
    await adapter.send(outbound("hi", rateable=True))
    (sent,) = slack.by_bot("DU1")
    assert (sent["text"], sent["blocks"]) == ("hi", [])


@given(st.text(alphabet="a <&\n。", min_size=1, max_size=9_000))
@settings(max_examples=30)
def test_each_part_of_an_answer_fits_into_a_block(text: str) -> None:
    parts = SlackAdapter(BOT_TOKEN, APP_TOKEN).split(text)
    assert all(len(escape(part)) <= BLOCK_CHARS for part in parts)


async def test_slacks_own_delay_is_kept(slack: FakeSlack, adapter: SlackAdapter) -> None:
    slack.add_channel("DU1")
    slack.pause_s = 5.0
    await adapter.send(outbound("one"))
    with pytest.raises(RetryLater) as refused:
        await adapter.send(outbound("two"))
    assert (refused.value.after, slack.floods) == (5.0, 1)


async def test_an_answer_in_a_channel_goes_to_its_thread(slack: FakeSlack, adapter: SlackAdapter) -> None:
    root = slack.say("C1", "U1", "hello")["ts"]
    await adapter.send(OutboundMessage("o1", OutboundKind.REPLY, Address(Platform.SLACK, "T0FAKE", "C1", root), "hi"))
    assert slack.called(POST)[0]["thread_ts"] == root


async def test_no_text_can_call_everybody_or_hide_a_link(slack: FakeSlack, adapter: SlackAdapter) -> None:
    slack.add_channel("DU1")
    await adapter.send(outbound("<!channel> <@U1> <http://evil.example|bank> & co"))
    sent = slack.called(POST)[0]
    assert sent["text"] == "&lt;!channel&gt; &lt;@U1&gt; &lt;http://evil.example|bank&gt; &amp; co"
    assert (sent["unfurl_links"], sent["unfurl_media"]) == (False, False)
    assert not sent.keys() & {"link_names", "parse", "blocks"}


async def test_a_card_has_a_bold_title_and_is_edited_in_place(slack: FakeSlack, adapter: SlackAdapter) -> None:
    slack.add_channel("C1")
    card = OutboundMessage("o1", OutboundKind.CARD, Address(Platform.SLACK, "", "C1"), "Title <1>\nfirst")
    first = await adapter.send(card)
    edit = OutboundMessage(
        "o2", OutboundKind.CARD, card.address, "Title\nsecond", edits=first.platform_id, maybe_sent=True
    )
    second = await adapter.send(edit)
    assert slack.called(POST)[0]["text"] == "*Title &lt;1&gt;*\nfirst"
    assert slack.said("C1") == ["*Title*\nsecond"]
    assert second.platform_id == first.platform_id


@pytest.mark.parametrize("thread", [False, True])
async def test_a_message_that_did_arrive_is_found_and_not_sent_again(
    slack: FakeSlack, adapter: SlackAdapter, thread: bool
) -> None:
    event = await slack.direct_message("U1", "hello")
    message = outbound(reply_to=event.ts if thread else "")
    slack.fail(POST, Fault(reset=True, done=True))
    with pytest.raises(OutcomeUnknown):
        await adapter.send(message)
    delivery = await adapter.send(outbound(reply_to=message.reply_to, maybe_sent=True))
    assert [said["ts"] for said in await slack.posted("DU1")] == [delivery.platform_id]
    assert len(slack.called(REPLIES if thread else HISTORY)) == 1


async def test_a_message_that_did_not_arrive_is_looked_for_on_every_page_and_sent(
    slack: FakeSlack, adapter: SlackAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.slack, "PAGE", 2)
    for number in range(5):
        slack.say("DU1", "U1", str(number))
    slack.fail(POST, Fault(reset=True))
    with pytest.raises(OutcomeUnknown):
        await adapter.send(outbound())
    await adapter.send(outbound(maybe_sent=True))
    assert slack.said("DU1") == ["hello"]
    assert len(slack.called(HISTORY)) == 3


@pytest.mark.parametrize("fault", [Fault(reset=True), Fault(status=500), Fault(error="fatal_error")])
async def test_nothing_is_sent_while_slack_cannot_be_asked(
    slack: FakeSlack, adapter: SlackAdapter, fault: Fault
) -> None:
    slack.add_channel("DU1")
    slack.fail(HISTORY, fault, fault)  # aiohttp asks again by itself when a GET was cut off
    with pytest.raises(RetryLater):
        await adapter.send(outbound(maybe_sent=True))
    assert not slack.called(POST)


# -- what a failed send means


async def test_a_flood_limit_is_kept_by_slack_s_own_delay(slack: FakeSlack, adapter: SlackAdapter) -> None:
    slack.fail(POST, Fault(retry_after=7))
    with pytest.raises(RetryLater) as caught:
        await adapter.send(outbound())
    assert caught.value.after == 7
    assert len(slack.calls) == 1


async def test_a_refused_connection_is_tried_later() -> None:
    with pytest.raises(RetryLater) as caught:
        await SlackAdapter(BOT_TOKEN, APP_TOKEN, "http://127.0.0.1:9/api/").send(outbound())
    assert caught.value.after is None


@pytest.mark.parametrize("error", ["ratelimited", "service_unavailable"])
async def test_slack_saying_later_is_tried_later(slack: FakeSlack, adapter: SlackAdapter, error: str) -> None:
    slack.fail(POST, Fault(error=error))
    with pytest.raises(RetryLater):
        await adapter.send(outbound())


@pytest.mark.parametrize(
    "fault",
    [
        Fault(reset=True),
        Fault(silent=True),
        Fault(status=500),
        Fault(status=503, error="service_down"),
        Fault(error="internal_error"),
        Fault(status=200),
        Fault(status=200, content_type="text/plain"),
        Fault(status=200, content_type="application/json"),
    ],
)
async def test_no_clear_answer_leaves_the_outcome_unknown_and_is_not_retried(
    slack: FakeSlack, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(adapters.slack_api, "ANSWER_S", 0.3)
    slack.fail(POST, fault)
    with pytest.raises(OutcomeUnknown):
        await SlackAdapter(BOT_TOKEN, APP_TOKEN, slack.url).send(outbound())
    assert len(slack.calls) == 1


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("not_in_channel", "/invite"),
        ("channel_not_found", "channel's id"),
        ("is_archived", "unarchive"),
        ("account_inactive", "install"),
        ("invalid_auth", "copy it again"),
        ("msg_too_long", str(MAX_CHARS)),
        ("ekm_access_denied", "docs.slack.dev explains ekm_access_denied"),
    ],
)
async def test_a_refusal_is_final_and_says_what_to_do(
    slack: FakeSlack, adapter: SlackAdapter, error: str, advice: str
) -> None:
    slack.fail(POST, Fault(error=error))
    with pytest.raises(Undeliverable, match=f"the message to DU1: {error}; .*{advice}"):
        await adapter.send(outbound())
    assert len(slack.calls) == 1


async def test_a_missing_scope_is_named(slack: FakeSlack, adapter: SlackAdapter) -> None:
    slack.fail(POST, Fault(error="missing_scope", fields={"needed": "chat:write"}))
    with pytest.raises(Undeliverable, match="chat:write"):
        await adapter.send(outbound())


async def test_another_service_at_the_address_is_undeliverable(slack: FakeSlack, adapter: SlackAdapter) -> None:
    slack.fail(POST, Fault(status=404))
    with pytest.raises(Undeliverable, match=r"HTTP 404; .*slack\.api_url"):
        await adapter.send(outbound())


def test_a_text_is_cut_by_its_length_after_escaping() -> None:
    adapter = SlackAdapter(BOT_TOKEN, APP_TOKEN)
    parts = adapter.split("a < b & c > d. " * 500)
    assert all(len(escape(part)) <= MAX_CHARS for part in parts)
    assert 2 <= len(parts) <= 5


async def test_outside_of_threads_a_preview_asks_nothing_of_slack(slack: FakeSlack, adapter: SlackAdapter) -> None:
    await adapter.preview(Preview(Address(Platform.SLACK, "T0FAKE", "DU1"), "U1", 1, text="hel"))
    assert not slack.calls


# -- doctor and init


async def test_a_good_set_up_passes_every_check(slack: FakeSlack) -> None:
    slack.add_channel("C1", "agents")
    checks = await check(BOT_TOKEN, APP_TOKEN, slack.url, "C1")
    assert [(each.what, each.ok, each.detail) for each in checks] == [
        ("Slack bot token", True, "frontdesk in Fake"),
        ("Slack app-level token", True, ""),
        ("Slack channel", True, "#agents"),
    ]


async def test_without_a_channel_only_the_tokens_are_checked(slack: FakeSlack) -> None:
    assert [each.ok for each in await check(BOT_TOKEN, APP_TOKEN, slack.url, None)] == [True, True]


async def test_each_bad_token_is_named_with_what_to_do(slack: FakeSlack) -> None:
    wrong, swapped = await check("xoxb-wrong", BOT_TOKEN, slack.url, "")
    assert (wrong.ok, "invalid_auth; the token is wrong" in wrong.detail) == (False, True)
    assert (swapped.ok, "xapp-" in swapped.detail) == (False, True)


async def test_a_person_s_token_is_not_taken_for_the_bot_s(slack: FakeSlack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slack, "bot_id", "")
    bot, _ = await check(BOT_TOKEN, APP_TOKEN, slack.url, None)
    assert (bot.ok, "xoxb-" in bot.detail) == (False, True)


async def test_missing_scopes_are_named(slack: FakeSlack) -> None:
    slack.scopes = slack.scopes.replace("chat:write,", "")
    bot, _ = await check(BOT_TOKEN, APP_TOKEN, slack.url, None)
    assert (bot.ok, "chat:write" in bot.detail) == (False, True)


@pytest.mark.parametrize(
    ("channel", "words"),
    [({"member": False}, "/invite"), ({"archived": True}, "unarchive"), ({"private": True, "member": False}, "invite")],
)
async def test_a_channel_the_bot_cannot_write_to_fails(slack: FakeSlack, channel: dict[str, bool], words: str) -> None:
    slack.add_channel("C1", **channel)
    last = (await check(BOT_TOKEN, APP_TOKEN, slack.url, "C1"))[-1]
    assert (last.ok, words in last.detail) == (False, True)


async def test_a_slack_that_cannot_be_reached_fails_the_checks() -> None:
    checks = await check(BOT_TOKEN, APP_TOKEN, "http://127.0.0.1:9/api/", "C1")
    assert {each.detail for each in checks} == {"Slack cannot be reached: ClientConnectorError"}


async def test_the_bot_s_channels_are_found_on_every_page(slack: FakeSlack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.slack, "PAGE", 1)
    slack.add_channel("C1", "general")
    slack.add_channel("C2", "secret", private=True)
    slack.add_channel("C3", "elsewhere", member=False)
    slack.add_channel("C4", "old", archived=True)
    slack.add_channel("DU1")
    assert await find_channels(BOT_TOKEN, slack.url) == [("C1", "general"), ("C2", "secret")]


async def test_finding_channels_with_a_bad_token_is_a_sentence(slack: FakeSlack) -> None:
    with pytest.raises(ConfigError, match="invalid_auth"):
        await find_channels("xoxb-wrong", slack.url)
