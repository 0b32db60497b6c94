"""Slack's Events API read as messages: who is answered, in which conversation, and what reaches the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.slack_blocks import escape
from adapters.slack_events import plain, to_inbound
from bot.messages import Address, Dropped, Edited, InboundKind, InboundMessage, Left, Platform

TEAM, BOT = "T1", "U0BOT"
SPECS = Path(__file__).parents[3] / "shared" / "specs" / "slack-events"


def envelope(event: Any, **around: Any) -> dict[str, Any]:
    return {"type": "event_callback", "team_id": TEAM, "event_id": "Ev1", "event": event, **around}


def direct(text: str = "hello", **more: Any) -> dict[str, Any]:
    event = {"type": "message", "channel_type": "im", "channel": "D1", "user": "U1", "ts": "1.2", "text": text}
    return envelope({**event, **more})


def mention(text: str = "hello", **more: Any) -> dict[str, Any]:
    event = {"type": "app_mention", "channel": "C1", "user": "U1", "ts": "1.2", "text": f"<@{BOT}> {text}"}
    return envelope({**event, **more})


def accepted(body: dict[str, Any]) -> InboundMessage:
    message = to_inbound(body, TEAM, BOT)
    assert isinstance(message, InboundMessage), message
    return message


def dropped(body: Any) -> Dropped:
    event = to_inbound(body, TEAM, BOT)
    assert isinstance(event, Dropped), event
    return event


# -- conversations


def test_a_direct_message_is_a_private_conversation_of_its_sender() -> None:
    message = accepted(direct())
    assert message.address == Address(Platform.SLACK, TEAM, "D1")
    assert (message.customer.id, message.text, message.reply_to) == ("U1", "hello", "")


def test_a_direct_message_in_a_thread_stays_in_the_conversation_and_is_answered_in_the_thread() -> None:
    message = accepted(direct(thread_ts="1.0"))
    assert message.address == accepted(direct()).address
    assert message.reply_to == "1.0"


def test_a_mention_opens_a_thread_on_itself() -> None:
    message = accepted(mention())
    assert message.address == Address(Platform.SLACK, TEAM, "C1", "1.2")
    assert (message.reply_to, message.text) == ("1.2", "hello")


def test_a_mention_in_a_thread_belongs_to_that_thread() -> None:
    message = accepted(mention(thread_ts="1.0"))
    assert (message.address.thread, message.reply_to) == ("1.0", "1.0")


def test_a_mention_in_a_direct_message_is_the_same_message_as_its_twin() -> None:
    twin = accepted(direct(f"<@{BOT}> hello"))
    assert accepted(mention(channel="D1")) == twin


def test_the_same_message_keeps_its_id_whatever_event_brings_it() -> None:
    first, again = direct(), envelope(direct()["event"], event_id="Ev2")
    assert accepted(first).event_id == accepted(again).event_id == "D1:1.2"


def test_a_dropped_twin_cannot_stand_in_the_way_of_its_mention() -> None:
    twin = dropped(direct(f"<@{BOT}> hello", channel="C1", channel_type="channel"))
    assert twin.event_id != accepted(mention()).event_id
    assert twin.reason == "in a channel, without a mention"


# -- edits


def changed(**more: Any) -> dict[str, Any]:
    message = {
        "type": "message",
        "user": "U1",
        "ts": "1.2",
        "text": "helo &amp; hello",
        "edited": {"ts": "3.4"},
        **more,
    }
    event = {"type": "message", "subtype": "message_changed", "channel": "D1", "channel_type": "im", "ts": "3.5"}
    return envelope({**event, "message": message})


def test_an_edit_names_the_message_it_changes_and_is_an_event_of_its_own() -> None:
    edit = to_inbound(changed(), TEAM, BOT)
    assert isinstance(edit, Edited)
    assert (edit.of, edit.text) == (accepted(direct()).event_id, "helo & hello")
    later = to_inbound(changed(edited={"ts": "3.6"}), TEAM, BOT)
    assert isinstance(later, Edited)
    assert len({edit.of, edit.event_id, later.event_id}) == 3


@pytest.mark.parametrize(
    "more",
    [{"edited": None}, {"bot_id": "B1"}, {"text": ""}, {"text": "!help"}, {"ts": None}],
    ids=["a link was unfolded", "our own card", "no words", "a command", "no message"],
)
def test_a_change_that_is_no_persons_edit_is_dropped(more: dict[str, Any]) -> None:
    assert dropped(changed(**more)).reason in ("not a new message", "written by a bot")


# -- who is not answered


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"bot_id": "B1"}, "written by a bot"),
        ({"user": BOT}, "written by us"),
        ({"subtype": "message_changed"}, "not a new message"),
        ({"subtype": "bot_message"}, "not a new message"),
        ({"subtype": ["file_share"]}, "not a new message"),
        ({"channel_type": "mpim", "channel": "G1"}, "in a channel, without a mention"),
        ({"user": None}, "malformed"),
        ({"user": "U\ud800"}, "malformed"),
        ({"channel": {"id": "D1"}}, "malformed"),
        ({"ts": 1.2}, "malformed"),
        ({"type": "reaction_added"}, "not a message"),
    ],
)
def test_what_is_not_for_us_is_dropped_with_its_reason(more: dict[str, Any], reason: str) -> None:
    assert dropped(direct(**more)).reason == reason


@pytest.mark.parametrize("body", [None, [], "text", 5, {}, {"event": []}, envelope("text"), envelope(None)])
def test_a_malformed_envelope_is_dropped(body: Any) -> None:
    assert dropped(body).reason == "not an event"


def test_a_drop_keeps_slack_s_event_id_and_our_account() -> None:
    event = dropped(direct(bot_id="B1"))
    assert (event.event_id, event.account, event.platform, event.cursor) == ("Ev1", TEAM, Platform.SLACK, None)


# -- words


@pytest.mark.parametrize(
    ("marked", "words"),
    [
        ("1 &lt; 2 &amp;&amp; 3 &gt; 2", "1 < 2 && 3 > 2"),
        ("&amp;lt;", "&lt;"),
        ("see <https://a.example/x>", "see https://a.example/x"),
        ("see <http://a.example|a.example>", "see a.example"),
        ("see <http://a.example|my order>", "see my order (http://a.example)"),
        ("write <mailto:li@a.example|li@a.example>", "write li@a.example"),
        ("ask <@U7> or <@U8|ann> in <#C1|orders>", "ask @U7 or @ann in #orders"),
        ("<!here> and <!subteam^S1|@sales>", "@here and @sales"),
        ("by <!date^1392734382^{date}|tomorrow>", "by tomorrow"),
        ("a < b <unclosed", "a < b <unclosed"),
        (f"<@{BOT}>: hello", "hello"),
        (f"  <@{BOT}|frontdesk>，你好", "你好"),
        (f"thanks <@{BOT}>", f"thanks @{BOT}"),
    ],
)
def test_markup_becomes_what_a_person_reads(marked: str, words: str) -> None:
    assert plain(marked, BOT) == words


@given(st.text())
def test_what_is_escaped_reads_back_as_itself(text: str) -> None:
    assert plain(escape(text), BOT) == text.strip()


@pytest.mark.parametrize("text", ["!help", " !Human "])
def test_a_word_with_an_exclamation_mark_is_a_command(text: str) -> None:
    message = accepted(direct(text))
    assert (message.kind, message.text) == (InboundKind.COMMAND, text.strip(" !").lower())


def test_a_sentence_about_a_command_is_text() -> None:
    assert accepted(direct("what does !help do")).kind is InboundKind.TEXT


@pytest.mark.parametrize(
    ("more", "media"),
    [
        ({"files": [{"mimetype": "image/png"}]}, "photo"),
        ({"files": [{"mimetype": "audio/mp4"}]}, "voice"),
        ({"files": [{"mimetype": "application/pdf"}]}, "document"),
        ({"files": [None]}, "document"),
        ({"attachments": [{"text": "forwarded"}]}, "attachment"),
    ],
)
def test_a_file_without_words_is_media_of_its_kind(more: dict[str, Any], media: str) -> None:
    message = accepted(direct("", subtype="file_share", **more))
    assert (message.kind, message.text) == (InboundKind.MEDIA, media)


def test_a_file_with_words_is_read_by_its_words() -> None:
    message = accepted(direct("broken", subtype="file_share", files=[{"mimetype": "image/png"}]))
    assert (message.kind, message.text) == (InboundKind.TEXT, "broken")


def test_a_reply_that_is_also_shown_in_the_chat_is_kept() -> None:
    assert accepted(direct(subtype="thread_broadcast", thread_ts="1.0")).reply_to == "1.0"


# -- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "type",
    "subtype",
    "channel",
    "channel_type",
    "user",
    "ts",
    "thread_ts",
    "text",
    "files",
    "attachments",
    "bot_id",
]


@given(JSON)
def test_no_json_is_an_exception(body: Any) -> None:
    dropped(body)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.sampled_from([direct, mention]))
def test_no_field_of_an_event_is_an_exception(more: dict[str, Any], make: Any) -> None:
    event = to_inbound(make(**{key: value for key, value in more.items() if key != "text"}), TEAM, BOT)
    assert not isinstance(event, InboundMessage) or (event.customer.id and event.address.chat and event.event_id)
    to_inbound(envelope({**make()["event"], **more}), TEAM, BOT)


@pytest.mark.skipif(not SPECS.is_dir(), reason="the platform's payload shapes are not on this machine")
@pytest.mark.parametrize("name", sorted(path.stem for path in SPECS.glob("*.json")))
def test_every_payload_of_the_platform_has_its_outcome(name: str) -> None:
    body = json.loads((SPECS / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(to_inbound(body, TEAM, BOT), Dropped), "as recorded, with every value empty"
    body |= {"type": "event_callback", "event_id": "Ev1"}
    values = {"user": "U1", "channel": "D1", "ts": "1.2", "channel_type": "im", "text": "hello", "bot_id": ""}
    body["event"] |= {key: value for key, value in values.items() if key in body["event"]}
    heard = ("AppMention", "Message", "MessageFileShare", "MessageThreadBroadcast")
    expected = InboundMessage if name in heard else Dropped
    assert type(to_inbound(body, TEAM, BOT)) is expected


# -- files


def test_files_are_named_with_links_to_them_where_there_are_any() -> None:
    files = [{"mimetype": "image/png", "permalink": "https://x.example/1"}, {"permalink": "javascript:1"}, "odd", {}]
    message = accepted(direct("see", subtype="file_share", files=files))
    assert (message.text, message.media) == ("see", "photo https://x.example/1")
    assert accepted(direct("hi")).media == ""


def test_an_edit_says_whose_it_is() -> None:
    now = {"type": "message", "user": "U1", "ts": "1.2", "text": "b", "edited": {"user": "U1", "ts": "2.0"}}
    body = envelope({"type": "message", "subtype": "message_changed", "channel": "C1", "ts": "2.1", "message": now})
    edit = to_inbound(body, TEAM, BOT)
    assert isinstance(edit, Edited)
    assert edit.by == "U1"


def test_who_leaves_a_channel_is_known_to_have_left() -> None:
    left = envelope({"type": "member_left_channel", "user": "U1", "channel": "C1", "channel_type": "C"})
    assert to_inbound(left, TEAM, BOT) == Left(Platform.SLACK, TEAM, "C1", "U1")
