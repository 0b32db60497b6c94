"""Files are copied between chats of a Slack of our own: whole, once, and to nobody else."""

from __future__ import annotations

from typing import Any

import pytest

import adapters.slack_files
from adapters.slack import SlackAdapter
from adapters.slack_files import is_slacks, shared_ts
from bot.errors import OutcomeUnknown, RetryLater, Undeliverable
from bot.messages import Address, Delivery, OutboundKind, OutboundMessage, Platform
from tests.fakes.slack import FakeSlack, Fault

ASK, COMPLETE, INFO = "files.getUploadURLExternal", "files.completeUploadExternal", "files.info"
REPLIES, API = "conversations.replies", "https://slack.com/api/"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.slack_files, "SHARED_AFTER_S", (0.0, 0.0, 0.0))


@pytest.fixture
def adapter(slack: FakeSlack) -> SlackAdapter:
    return SlackAdapter(slack.bot_token, slack.app_token, slack.url)


@pytest.fixture
def card(slack: FakeSlack) -> str:
    """The ts of a card among the agents."""
    slack.add_channel("DU1")
    return str(slack.say("C1", slack.bot_user, "card")["ts"])


def write(slack: FakeSlack, text: str = "", thread: str = "", files: list[dict[str, Any]] | None = None) -> str:
    """A customer's message with files, one unless told otherwise; its event_id."""
    said = slack.say("DU1", "U1", text, thread, subtype="file_share", files=files or [slack.put_file(b"a cup")])
    return f"DU1:{said['ts']}"


def to_agents(copies: str, card: str, text: str = "", **more: Any) -> OutboundMessage:
    address = Address(Platform.SLACK, "T0FAKE", "C1")
    return OutboundMessage("o1", OutboundKind.RELAY, address, text, reply_to=card, copies=copies, **more)


def to_customer(copies: str, text: str, **more: Any) -> OutboundMessage:
    address = Address(Platform.SLACK, "T0FAKE", "DU1")
    return OutboundMessage("o1", OutboundKind.AGENT, address, text, copies=copies, **more)


# -- what arrives


async def test_a_customer_s_file_is_copied_into_the_thread_of_the_card(
    slack: FakeSlack, adapter: SlackAdapter, card: str
) -> None:
    delivery = await adapter.send(to_agents(write(slack, "it broke"), card))
    assert slack.shown("C1") == [("", [b"a cup"])]  # the words go ahead of it, in a message of their own
    copy = slack.by_bot("C1")[-1]
    assert (copy["thread_ts"], copy["ts"]) == (card, delivery.platform_id)
    assert (copy["files"][0]["name"], copy["files"][0]["title"]) == ("photo.png", "photo")


async def test_an_agent_s_file_reaches_the_customer_with_its_words_escaped(
    slack: FakeSlack, adapter: SlackAdapter, card: str
) -> None:
    said = slack.say("C1", "UANNA", "a &lt; b &amp; <!channel>", card, files=[slack.put_file(b"invoice")])
    await adapter.send(to_customer(f"C1:{said['ts']}", "a < b & @channel <!here>"))
    assert slack.shown("DU1") == [("a &lt; b &amp; @channel &lt;!here&gt;", [b"invoice"])]
    assert "thread_ts" not in slack.by_bot("DU1")[0]


async def test_a_file_without_words_arrives_without_words(slack: FakeSlack, adapter: SlackAdapter, card: str) -> None:
    said = slack.say("C1", "UANNA", "", card, files=[slack.put_file(b"invoice")])
    await adapter.send(to_customer(f"C1:{said['ts']}", "photo"))
    assert slack.shown("DU1") == [("", [b"invoice"])]


async def test_two_files_arrive_in_one_message(slack: FakeSlack, adapter: SlackAdapter, card: str) -> None:
    both = [slack.put_file(b"front"), slack.put_file(b"back", "Rückseite.pdf", "application/pdf")]
    await adapter.send(to_agents(write(slack, files=both), card))
    assert slack.shown("C1") == [("", [b"front", b"back"])]
    assert [each["name"] for each in slack.by_bot("C1")[-1]["files"]] == ["photo.png", "Rückseite.pdf"]


async def test_a_file_in_a_customer_s_thread_is_found(slack: FakeSlack, adapter: SlackAdapter, card: str) -> None:
    root = slack.say("DU1", "U1", "hello")["ts"]
    write(slack, "another", root)
    await adapter.send(to_agents(write(slack, "", root, [slack.put_file(b"in a thread")]), card))
    assert slack.shown("C1") == [("", [b"in a thread"])]


async def test_a_web_page_is_a_file_like_any_other(slack: FakeSlack, adapter: SlackAdapter, card: str) -> None:
    page = slack.put_file(b"<html>", "page.html", "text/html")
    await adapter.send(to_agents(write(slack, files=[page]), card))
    assert slack.shown("C1") == [("", [b"<html>"])]


async def test_slack_is_asked_again_where_it_has_not_shared_the_file_yet(
    slack: FakeSlack, adapter: SlackAdapter, card: str
) -> None:
    slack.hidden_for = 2
    delivery = await adapter.send(to_agents(write(slack), card))
    assert delivery.platform_id == slack.by_bot("C1")[-1]["ts"]
    assert len(slack.called(INFO)) == 3


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(error="missing_scope"), Fault(reset=True)])
async def test_what_arrived_has_arrived_even_where_slack_does_not_tell_its_id(
    slack: FakeSlack, adapter: SlackAdapter, card: str, fault: Fault
) -> None:
    slack.fail(INFO, *[fault] * 6)  # aiohttp asks again by itself when a GET was cut off
    assert await adapter.send(to_agents(write(slack), card)) == Delivery("")
    assert slack.shown("C1") == [("", [b"a cup"])]


@pytest.mark.parametrize("shares", [None, [], {"private": []}, {"private": {"C1": [1]}}, {"public": {"C2": [{}]}}])
def test_any_answer_about_shares_is_read(shares: Any) -> None:
    assert shared_ts({"shares": shares}, "C1") == ""


# -- edits


async def test_an_edit_changes_the_words_beside_the_file(slack: FakeSlack, adapter: SlackAdapter, card: str) -> None:
    said = slack.say("C1", "UANNA", "invoice", card, files=[slack.put_file(b"invoice")])
    first = await adapter.send(to_customer(f"C1:{said['ts']}", "invoice"))
    second = await adapter.send(to_customer(f"C1:{said['ts']}", "the new invoice", edits=first.platform_id))
    assert slack.shown("DU1") == [("the new invoice", [b"invoice"])]
    assert second == first


# -- what cannot be copied


@pytest.mark.parametrize("declared", [True, False])
async def test_a_file_that_is_too_large_is_refused(
    slack: FakeSlack, adapter: SlackAdapter, card: str, monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    monkeypatch.setattr(adapters.slack_files, "MAX_BYTES", 2_000_000)
    large = slack.put_file(b"." * 2_000_001)
    if not declared:
        del large["size"]
    with pytest.raises(Undeliverable, match="larger than 2 MB"):
        await adapter.send(to_agents(write(slack, files=[slack.put_file(b"fits"), large]), card))
    assert (slack.shown("C1"), slack.downloads == []) == ([], declared)


async def test_a_deleted_message_is_said_to_be_deleted(slack: FakeSlack, adapter: SlackAdapter, card: str) -> None:
    copies = write(slack)
    slack.channels["DU1"].messages.clear()
    with pytest.raises(Undeliverable, match="deleted"):
        await adapter.send(to_agents(copies, card))


async def test_a_deleted_file_is_said_to_be_deleted(slack: FakeSlack, adapter: SlackAdapter, card: str) -> None:
    with pytest.raises(Undeliverable, match="deleted"):
        await adapter.send(to_agents(write(slack, files=[{"id": "F1", "mode": "tombstone"}]), card))
    copies = write(slack)
    slack.contents.clear()
    with pytest.raises(Undeliverable, match="deleted"):
        await adapter.send(to_agents(copies, card))
    assert slack.shown("C1") == []


async def test_a_message_without_files_cannot_be_copied(slack: FakeSlack, adapter: SlackAdapter, card: str) -> None:
    forwarded = slack.say("DU1", "U1", "", attachments=[{"text": "forwarded"}])
    with pytest.raises(Undeliverable, match="holds no files"):
        await adapter.send(to_agents(f"DU1:{forwarded['ts']}", card))


@pytest.mark.parametrize("scope", ["files:read", "files:write"])
async def test_a_missing_scope_is_named_with_what_to_do(
    slack: FakeSlack, adapter: SlackAdapter, card: str, scope: str
) -> None:
    slack.scopes = slack.scopes.replace(f"{scope},", "")
    with pytest.raises(Undeliverable, match=f"{scope} is missing.*; update the app's manifest and install it again"):
        await adapter.send(to_agents(write(slack), card))
    assert slack.shown("C1") == []


async def test_a_login_page_is_not_taken_for_the_file(slack: FakeSlack, adapter: SlackAdapter, card: str) -> None:
    slack.fail("download", Fault(status=200))
    with pytest.raises(Undeliverable, match="files:read is missing"):
        await adapter.send(to_agents(write(slack), card))


async def test_files_that_the_workspace_forbids_are_refused(slack: FakeSlack, adapter: SlackAdapter, card: str) -> None:
    slack.fail(ASK, Fault(error="file_type_not_allowed"))
    with pytest.raises(Undeliverable, match="does not let files of this kind in"):
        await adapter.send(to_agents(write(slack), card))


# -- who sees the token


async def test_a_file_elsewhere_is_not_asked_for(slack: FakeSlack, adapter: SlackAdapter, card: str) -> None:
    async with FakeSlack() as elsewhere:
        with pytest.raises(Undeliverable, match="outside of Slack"):
            await adapter.send(to_agents(write(slack, files=[slack.put_file(), elsewhere.put_file()]), card))
        assert elsewhere.downloads == slack.downloads == []


@pytest.mark.parametrize(
    ("url", "slacks"),
    [
        ("https://files.slack.com/files-pri/T1-F1/a.png", True),
        ("https://slack.com/files/F1", True),
        ("https://big-shop.enterprise.slack.com/files/F1", True),
        ("https://slack-files.com/T1-F1", True),
        ("http://files.slack.com/F1", False),
        ("https://files.slack.com.evil.example/F1", False),
        ("https://evilslack.com/F1", False),
        ("https://evil.example/files.slack.com/F1", False),
        ("https://files.slack.com@evil.example/F1", False),
        ("https://evil.example\\@files.slack.com/F1", False),
        ("https://evil.example#.slack.com/F1", False),
        ("https://files.slack.com:8080/F1", False),
        ("https://files.slack.com", False),
        ("", False),
    ],
)
def test_only_slack_s_own_hosts_are_slack(url: str, slacks: bool) -> None:
    assert is_slacks(url, API) is slacks


def test_the_host_of_the_web_api_is_slack_too() -> None:
    assert is_slacks("http://127.0.0.1:81/F1", "http://127.0.0.1:81/api/")
    assert not is_slacks("http://127.0.0.1:8181/F1", "http://127.0.0.1:81/api/")


# -- what a failure means


@pytest.mark.parametrize("step", [REPLIES, "download", ASK, "upload"])
@pytest.mark.parametrize("fault", [Fault(reset=True), Fault(status=503), Fault(retry_after=7)], ids=repr)
async def test_before_the_last_step_nothing_is_there_and_it_is_tried_later(
    slack: FakeSlack, adapter: SlackAdapter, card: str, step: str, fault: Fault
) -> None:
    copies = write(slack)
    slack.fail(step, fault, fault)
    with pytest.raises(RetryLater) as caught:
        await adapter.send(to_agents(copies, card))
    assert caught.value.after == fault.retry_after
    assert (slack.shown("C1"), slack.called(COMPLETE)) == ([], [])


async def test_a_download_that_takes_too_long_is_tried_later(
    slack: FakeSlack, adapter: SlackAdapter, card: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.slack_files, "TRANSFER_S", 0.0001)
    with pytest.raises(RetryLater):
        await adapter.send(to_agents(write(slack), card))


async def test_a_flood_limit_on_the_last_step_is_kept(slack: FakeSlack, adapter: SlackAdapter, card: str) -> None:
    slack.fail(COMPLETE, Fault(retry_after=7))
    with pytest.raises(RetryLater) as caught:
        await adapter.send(to_agents(write(slack), card))
    assert caught.value.after == 7


@pytest.mark.parametrize("fault", [Fault(reset=True), Fault(status=500), Fault(error="internal_error")], ids=repr)
async def test_no_answer_to_the_last_step_leaves_the_outcome_unknown_and_it_is_sent_once_more(
    slack: FakeSlack, adapter: SlackAdapter, card: str, fault: Fault
) -> None:
    copies = write(slack)
    slack.fail(COMPLETE, fault)
    with pytest.raises(OutcomeUnknown):
        await adapter.send(to_agents(copies, card))
    assert len(slack.called(COMPLETE)) == 1
    await adapter.send(to_agents(copies, card, maybe_sent=True))
    assert slack.shown("C1") == [("", [b"a cup"])]


async def test_it_is_not_sent_a_third_time(slack: FakeSlack, adapter: SlackAdapter, card: str) -> None:
    slack.fail(COMPLETE, Fault(reset=True))
    with pytest.raises(Undeliverable, match="may have arrived"):
        await adapter.send(to_agents(write(slack), card, maybe_sent=True))


async def test_what_the_last_step_did_without_an_answer_is_found(
    slack: FakeSlack, adapter: SlackAdapter, card: str
) -> None:
    slack.fail(COMPLETE, Fault(reset=True, done=True))
    delivery = await adapter.send(to_agents(write(slack), card))
    assert delivery.platform_id == slack.by_bot("C1")[-1]["ts"]
    assert slack.shown("C1") == [("", [b"a cup"])]
