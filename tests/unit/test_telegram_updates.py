"""What Telegram sends becomes a message or a drop with a reason, and never an exception."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.telegram_updates import Question, find_here, to_inbound, to_question
from bot.messages import Address, Customer, Dropped, Edited, InboundKind, InboundMessage, Left, Moved, Platform

ACCOUNT, USERNAME = "4242", "Shop_Bot"
WANG = {"id": 7, "is_bot": False, "first_name": "芳", "last_name": "王", "language_code": "zh-hans"}
PRIVATE = {"id": 7, "type": "private", "first_name": "芳"}
GROUP = {"id": -100500, "type": "supergroup", "title": "Neighbours"}


def message(chat: Any = PRIVATE, **fields: Any) -> dict[str, Any]:
    return {"message_id": 31, "date": 1_780_000_000, "chat": chat, "from": WANG, **fields}


def read(chat: Any = PRIVATE, **fields: Any) -> InboundMessage | Dropped:
    return to_inbound({"update_id": 900, "message": message(chat, **fields)}, ACCOUNT, USERNAME)


def heard(chat: Any = PRIVATE, **fields: Any) -> InboundMessage:
    event = read(chat, **fields)
    assert isinstance(event, InboundMessage)
    return event


def dropped(update: object) -> str:
    event = to_inbound(update, ACCOUNT, USERNAME)
    assert isinstance(event, Dropped)
    return event.reason


def reason(chat: Any = PRIVATE, **fields: Any) -> str:
    return dropped({"update_id": 900, "message": message(chat, **fields)})


def test_a_private_text_keeps_everything_we_need():
    assert heard(text="你好") == InboundMessage(
        address=Address(Platform.TELEGRAM, ACCOUNT, "7"),
        customer=Customer("7", "芳 王", "zh-hans"),
        event_id="7:31",
        text="你好",
        cursor=900,
    )


def test_a_redelivery_under_another_number_is_still_the_same_event():
    one, two = (to_inbound({"update_id": n, "message": message(text="hi")}, ACCOUNT, USERNAME) for n in (5, 6))
    assert isinstance(one, InboundMessage)
    assert isinstance(two, InboundMessage)
    assert one.event_id == two.event_id


def test_the_same_message_number_in_two_chats_is_two_events():
    other = {"id": 8, "type": "private"}
    assert heard(text="hi").event_id != heard(other, text="hi").event_id


# -- commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/start", "start"),
        ("/start from-the-website", "start from-the-website"),
        ("/start  ", "start"),
        ("/start " + "x" * 100, "start " + "x" * 64),
        ("/language@shop_bot  ZH", "language ZH"),
        ("/status now", "status"),
        ("/help@shop_bot", "help"),
        ("/HUMAN", "human"),
        ("/human\nplease", "human"),
    ],
)
def test_our_commands_are_commands(text: str, name: str):
    event = heard(text=text)
    assert (event.kind, event.text) == (InboundKind.COMMAND, name)


@pytest.mark.parametrize("text", ["/price", "/human!", "/", "//start", " /start", "/帮助", "and /start"])
def test_an_unknown_command_is_text(text: str):
    event = heard(text=text)
    assert (event.kind, event.text) == (InboundKind.TEXT, text)


@pytest.mark.parametrize("text", ["/help@other_bot", "/price@other_bot now"])
@pytest.mark.parametrize("chat", [PRIVATE, GROUP])
def test_a_command_for_another_bot_is_dropped(text: str, chat: Any):
    assert reason(chat, text=text) == "command for another bot"


# -- media -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"photo": [{"file_id": "x"}]}, "photo"),
        ({"voice": {"file_id": "x"}}, "voice"),
        ({"sticker": {"emoji": "👍"}}, "sticker"),
        ({"animation": {"file_id": "x"}, "document": {"file_id": "x"}}, "animation"),
        ({"venue": {"title": "x"}, "location": {"latitude": 1}}, "venue"),
        ({"live_photo": {"file_id": "x"}, "photo": [{"file_id": "x"}]}, "live_photo"),
    ],
)
def test_media_without_words_names_its_kind(fields: dict[str, Any], kind: str):
    event = heard(**fields)
    assert (event.kind, event.text) == (InboundKind.MEDIA, kind)


def test_a_caption_is_what_was_said():
    event = heard(photo=[{"file_id": "x"}], caption="the cup is broken")
    assert (event.kind, event.text) == (InboundKind.TEXT, "the cup is broken")


# -- groups ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "/human"},
        {"text": "/help@shop_bot"},
        {"text": "/price@shop_bot"},
        {"text": "when do you open, @shop_bot?"},
        {"text": "你好@Shop_Bot请问几点开门"},
        {"photo": [{"file_id": "x"}], "caption": "@shop_bot what is this"},
        {"text": "and tomorrow?", "reply_to_message": {"from": {"id": 4242, "is_bot": True}}},
        {"sticker": {"emoji": "👍"}, "reply_to_message": {"from": {"id": 4242, "is_bot": True}}},
    ],
)
def test_in_a_group_we_hear_what_is_said_to_us(fields: dict[str, Any]):
    event = heard(GROUP, **fields)
    assert (event.reply_to, event.address.chat) == ("31", "-100500")


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "good morning all"},
        {"text": "/price"},
        {"text": "write to me@shop_bot.example"},
        {"text": "ask @shop_bot_2"},
        {"text": "yes", "reply_to_message": {"from": {"id": 8, "is_bot": False}}},
        {"photo": [{"file_id": "x"}]},
    ],
)
def test_in_a_group_we_do_not_listen_to_others(fields: dict[str, Any]):
    assert reason(GROUP, **fields) == "not addressed to the bot"


@pytest.mark.parametrize("text", ["/here", "/here@shop_bot"])
def test_the_set_up_command_is_no_message_to_the_desk(text: str):
    assert reason(GROUP, text=text) == "set-up command"


def test_in_a_private_chat_the_answer_goes_to_the_chat():
    event = heard(text="hi")
    assert event.reply_to == ""


def test_a_forum_topic_is_a_place_of_its_own():
    event = heard(GROUP, text="/help", message_thread_id=5, is_topic_message=True)
    assert event.address.thread == "5"


def test_a_chain_of_replies_is_no_topic():
    assert heard(GROUP, text="/help", message_thread_id=5).address.thread == ""


@pytest.mark.parametrize("chat", [PRIVATE, GROUP])
def test_an_edit_names_the_message_it_changes_and_is_an_event_of_its_own(chat: dict[str, Any]):
    original = heard(chat, text="/help")
    edit = to_inbound({"update_id": 901, "edited_message": message(chat, text="hi", edit_date=5)}, ACCOUNT, USERNAME)
    later = to_inbound({"update_id": 902, "edited_message": message(chat, text="ho", edit_date=6)}, ACCOUNT, USERNAME)
    assert isinstance(edit, Edited)
    assert isinstance(later, Edited)
    assert (edit.of, edit.text, edit.cursor) == (original.event_id, "hi", 901)
    assert len({original.event_id, edit.event_id, later.event_id}) == 3


def test_the_new_caption_of_a_picture_is_an_edit():
    edit = to_inbound(
        {"update_id": 901, "edited_message": message(photo=[{}], caption="broken", edit_date=5)}, ACCOUNT, USERNAME
    )
    assert isinstance(edit, Edited)
    assert edit.text == "broken"


def test_a_group_that_becomes_a_supergroup_moves():
    bot = {"id": 1087968824, "is_bot": True, "first_name": "Group"}
    service = {**message({"id": -5, "type": "group"}, migrate_to_chat_id=-1005), "from": bot}
    assert to_inbound({"update_id": 900, "message": service}, ACCOUNT, USERNAME) == Moved(
        Platform.TELEGRAM, ACCOUNT, "-5", "-1005", 900
    )
    assert reason({"id": -1005, "type": "supergroup"}, migrate_from_chat_id=-5) == "service message"


# -- what agents ask of the desk -------------------------------------------------------------------


def asked(chat: Any = GROUP, **fields: Any) -> Question | None:
    return to_question({"update_id": 900, "message": message(chat, **fields)}, ACCOUNT, USERNAME, "-100500")


@pytest.mark.parametrize(
    ("text", "words"),
    [("/open", "open"), ("/status", "status"), ("/help", "help"), ("/OPEN@shop_bot", "open"), ("/open please", "open")],
)
def test_what_agents_ask_of_the_desk_is_a_question(text: str, words: str):
    place = Address(Platform.TELEGRAM, ACCOUNT, "-100500")
    assert asked(text=text) == Question(words, "zh-hans", place, "31", 900)


def test_a_question_in_a_topic_is_answered_there():
    found = asked(text="/open", message_thread_id=5, is_topic_message=True)
    assert found is not None
    assert found.place.thread == "5"


def test_a_question_under_a_card_is_no_word_to_the_customer():
    assert asked(text="/open", reply_to_message={"message_id": 3, "from": {"id": 4242, "is_bot": True}})


@pytest.mark.parametrize(
    "text", ["open", "/opens", " /open", "/open@other_bot", "/human", "/start", "/here", "/price", ""]
)
def test_other_words_are_no_question(text: str):
    assert asked(text=text) is None


@pytest.mark.parametrize("chat", [PRIVATE, {**GROUP, "id": -100501}, {**GROUP, "type": "channel"}, {}])
def test_elsewhere_nothing_is_a_question(chat: Any):
    assert asked(chat, text="/status") is None


def test_a_bot_a_channel_and_an_edit_ask_nothing():
    bot, edited = {"id": 9, "is_bot": True}, {"update_id": 900, "edited_message": message(GROUP, text="/open")}
    assert asked(text="/open", sender_chat={"id": -1}) is None
    assert asked(text="/open", **{"from": bot}) is None
    assert to_question(edited, ACCOUNT, USERNAME, "-100500") is None


# -- what is not for us ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("update", "why"),
    [
        ({"update_id": 900, "edited_message": message(edit_date=5)}, "edited, not in words"),
        ({"update_id": 900, "edited_message": message(text="/help", edit_date=5)}, "edited, not in words"),
        ({"update_id": 900, "edited_message": message(location={"latitude": 1})}, "edited, not in words"),
        (
            {"update_id": 900, "edited_message": {**message(text="hi"), "from": {"id": 9, "is_bot": True}}},
            "not from a person",
        ),
        ({"update_id": 900, "channel_post": message(text="hi")}, "channel post"),
        ({"update_id": 900, "edited_channel_post": message(text="hi")}, "channel post"),
        ({"update_id": 900, "callback_query": {"id": "1"}}, "unknown update type"),
        ({"update_id": 900, "hologram": {"from": WANG}}, "unknown update type"),
        ({"update_id": 900}, "unknown update type"),
        ({"update_id": 900, "message": None}, "malformed message"),
        ({"update_id": 900, "message": message(chat={"id": "7", "type": "private"}, text="hi")}, "malformed message"),
        (
            {"update_id": 900, "message": message(chat={"id": 7, "type": "channel"}, text="hi")},
            "not a chat with people",
        ),
        ({"update_id": 900, "message": message(chat={"id": 7}, text="hi")}, "not a chat with people"),
        ({"update_id": 900, "message": {**message(text="hi"), "from": {"id": 9, "is_bot": True}}}, "not from a person"),
        ({"update_id": 900, "message": message(text="hi", sender_chat={"id": -1})}, "not from a person"),
        ({"update_id": 900, "message": message(new_chat_title="x")}, "service message"),
        ({"update_id": 900, "message": message(text="")}, "service message"),
    ],
)
def test_the_rest_is_dropped_with_a_reason_and_moves_the_cursor(update: dict[str, Any], why: str):
    event = to_inbound(update, ACCOUNT, USERNAME)
    assert event == Dropped(Platform.TELEGRAM, ACCOUNT, why, cursor=900)


@pytest.mark.parametrize(
    "update", [None, [], "update", 7, {}, {"update_id": "900"}, {"update_id": True}, {"update_id": 2**63}]
)
def test_without_a_number_there_is_nothing_to_move_the_cursor_to(update: object):
    assert to_inbound(update, ACCOUNT, USERNAME) == Dropped(Platform.TELEGRAM, ACCOUNT, "malformed update")


def test_lone_surrogates_and_nul_pass_through_to_intake():
    assert heard(text="a\ud83d\x00b").text == "a\ud83d\x00b"


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([4242, "private", "/start", -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    (
        *("message_id", "chat", "from", "text", "caption", "reply_to_message", "is_topic_message", "message_thread_id"),
        *("photo", "sticker", "sender_chat", "via_bot", "forward_origin"),
    )
)
NESTED = st.sampled_from(["id", "type", "is_bot", "first_name", "last_name", "language_code", "title", "from"])


@given(JUNK)
def test_any_json_at_all_is_survived(update: object):
    assert isinstance(to_inbound(update, ACCOUNT, USERNAME), Dropped)
    assert to_question(update, ACCOUNT, USERNAME, "-100500") is None


@given(
    st.sampled_from([PRIVATE, GROUP]),
    st.dictionaries(KEYS, JUNK | st.dictionaries(NESTED, JUNK, max_size=4), max_size=4),
    st.sampled_from(["message", "edited_message", "poll"]),
)
def test_a_message_with_junk_in_any_field_is_survived(chat: Any, junk: dict[str, Any], key: str):
    event = to_inbound({"update_id": 900, key: {**message(chat, text="hi @shop_bot"), **junk}}, ACCOUNT, USERNAME)
    assert event.cursor == 900
    question = {"update_id": 900, key: {**message(chat, text="/open"), **junk}}
    assert to_question(question, ACCOUNT, USERNAME, "") is None
    found = to_question(question, ACCOUNT, USERNAME, "-100500")
    assert found is None or (found.words, found.cursor) == ("open", 900)
    if isinstance(event, InboundMessage):
        assert event.text
        assert all(isinstance(text, str) for text in (event.text, event.customer.name, event.customer.language))


# -- /here -----------------------------------------------------------------------------------------


def test_the_newest_here_wins():
    first = {"update_id": 1, "message": message({"id": -1, "type": "group", "title": "Old"}, text="/here")}
    last = {"update_id": 2, "message": message(GROUP, text="/here@shop_bot")}
    after = {"update_id": 3, "message": message(text="/here")}
    assert find_here([first, last, after, None], USERNAME) == ("-100500", "Neighbours")


@pytest.mark.parametrize("text", ["/hereafter", "here", "/here@other_bot", "go /here"])
def test_only_our_here_counts(text: str):
    assert find_here([{"update_id": 1, "message": message(GROUP, text=text)}], USERNAME) is None


# -- media, and the topics of the agents' group ---------------------------------------------------


@pytest.mark.parametrize("caption", ["", "see the crack"])
def test_what_comes_beside_the_words_or_instead_of_them_is_named(caption: str):
    event = heard(photo=[{"file_id": "x"}], **({"caption": caption} if caption else {}))
    assert (event.media, event.kind) == ("photo", InboundKind.TEXT if caption else InboundKind.MEDIA)
    assert heard(text="hi").media == ""


TOPIC = {"is_topic_message": True, "message_thread_id": 5}


def test_in_the_agents_group_all_that_is_said_in_topics_is_read():
    update = {"update_id": 900, "message": message(GROUP, text="hello", **TOPIC)}
    event = to_inbound(update, ACCOUNT, USERNAME, agents="-100500")
    assert isinstance(event, InboundMessage)
    assert (event.address.thread, event.text) == ("5", "hello")
    assert dropped(update) == "not addressed to the bot", "elsewhere it is not"
    outside = {"update_id": 900, "message": message(GROUP, text="lunch?")}
    assert isinstance(to_inbound(outside, ACCOUNT, USERNAME, agents="-100500"), Dropped)


def test_an_edit_says_whose_it_is():
    edit = to_inbound({"update_id": 900, "edited_message": message(text="b", edit_date=5)}, ACCOUNT, USERNAME)
    assert isinstance(edit, Edited)
    assert edit.by == "7"


def test_who_leaves_a_group_is_known_to_have_left():
    gone = {"left_chat_member": {"id": 42, "is_bot": False, "first_name": "Bo"}}
    update = {"update_id": 900, "message": message(GROUP, **gone)}
    assert to_inbound(update, ACCOUNT, USERNAME) == Left(Platform.TELEGRAM, ACCOUNT, "-100500", "42", 900)
