"""The table by which the fake Telegram judges calls: made from the published description, and strict."""

from __future__ import annotations

import json

import pytest

from tests.fakes.telegram_schema import decode
from tests.fixtures.make_telegram_methods import SPEC, TARGET, render, table


def test_the_table_is_what_the_description_gives():
    if not SPEC.exists():
        pytest.skip("the description of the Bot API is not beside this checkout")
    assert TARGET.read_text(encoding="utf-8") == render(table(json.loads(SPEC.read_text(encoding="utf-8"))))


def problems(method: str, **form: str) -> list[str]:
    return decode(method, form)[1]


def test_a_correct_call_is_decoded_without_complaint():
    form = {
        "chat_id": "-100",
        "text": "7",
        "reply_parameters": '{"message_id": 5, "allow_sending_without_reply": true}',
        "link_preview_options": '{"is_disabled": true}',
    }
    values, complaints = decode("sendMessage", form)
    assert complaints == []
    assert (values["chat_id"], values["text"], values["reply_parameters"]["message_id"]) == (-100, "7", 5)


@pytest.mark.parametrize(
    ("method", "form", "complaint"),
    [
        ("sendTelepathy", {}, "sendTelepathy: no such method"),
        ("sendMessage", {"chat_id": "1"}, "sendMessage: text is missing"),
        ("sendMessage", {"chat_id": "1", "text": "x", "colour": "red"}, "sendMessage: colour is unknown"),
        ("sendMessage", {"chat_id": "1", "text": "x", "message_thread_id": "x"}, "message_thread_id is not Integer"),
        ("sendMessage", {"chat_id": "1", "text": "x", "disable_notification": "1"}, "is not Boolean"),
        ("sendMessage", {"chat_id": "1", "text": "x", "reply_parameters": "5"}, "is not ReplyParameters"),
        ("sendMessage", {"chat_id": "1", "text": "x", "reply_parameters": "{}"}, "is not ReplyParameters"),
        ("sendMessage", {"chat_id": "1", "text": "x", "link_preview_options": '{"off": true}'}, "is not LinkPreview"),
        ("getUpdates", {"offset": "true"}, "offset is not Integer"),
        ("getUpdates", {"allowed_updates": "message"}, "is not Array of String"),
        ("getUpdates", {"allowed_updates": "[1]"}, "is not Array of String"),
        ("setMyCommands", {"commands": '[{"command": "start"}]'}, "is not Array of BotCommand"),
    ],
)
def test_a_wrong_call_is_named(method: str, form: dict[str, str], complaint: str):
    found = problems(method, **form)
    assert complaint in "".join(found)
    assert found
