"""What the store promises, on a real SQLite file and on a real PostgreSQL server."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from bot.conversation import Author, Call, Outcome, Owner, OwnerEvent, Reason
from bot.errors import LeaseLost
from bot.messages import (
    Delivery,
    Dropped,
    Edited,
    InboundKind,
    InboundMessage,
    Moved,
    OutboundKind,
    Platform,
    Rated,
    Rating,
    Receipt,
    Sentiment,
)
from bot.store.jobs import Claim, JobKind
from bot.store.reader import Reader
from bot.store.store import Store
from bot.store.values import OutboundState, Say, Sending, Settlement, Verdict
from tests.conftest import AGENTS, TurnableClock, inbound

pytestmark = pytest.mark.contract

LEASE = timedelta(seconds=30)
ANGRY = Sentiment("负面", 0.93, 0.8)


def claimed(store: Store, kind: JobKind = JobKind.ATTEND) -> Claim:
    claim = store.claim(kind, LEASE)
    assert claim is not None
    return claim


def answered(store: Store, claim: Claim, *parts: str, call: Call | None = None) -> None:
    verdicts = tuple(Verdict(line.id, Outcome.ANSWERED) for line in store.waiting(claim).lines)
    store.finish(claim, Settlement(verdicts, (Say(OutboundKind.REPLY, parts),), call))


def begun(store: Store) -> tuple[Claim, Sending]:
    claim = claimed(store, JobKind.DELIVER)
    sending = store.begin_send(claim)
    assert sending is not None
    return claim, sending


def crash(store: Store, clock: TurnableClock) -> None:
    """The process dies, and another takes over: at once where there can be only one, else as the leases run out."""
    clock.advance(LEASE.total_seconds())
    store.recover()


def test_a_message_is_stored_with_its_cursor_and_one_job(store: Store) -> None:
    assert store.accept(inbound(cursor=7)).receipt is Receipt.ACCEPTED
    assert store.cursor(Platform.TELEGRAM, "1") == 7
    claim = claimed(store)
    assert [line.text for line in store.waiting(claim).lines] == ["hello"]
    assert store.claim(JobKind.ATTEND, LEASE) is None


def test_a_redelivered_event_changes_nothing_but_the_cursor(store: Store) -> None:
    store.accept(inbound(cursor=7))
    assert store.accept(inbound("other words", cursor=9)).receipt is Receipt.DUPLICATE
    assert [line.text for line in store.waiting(claimed(store)).lines] == ["hello"]
    assert store.cursor(Platform.TELEGRAM, "1") == 9


def test_the_cursor_follows_a_platform_that_starts_to_count_anew(store: Store) -> None:
    store.drop(Dropped(Platform.TELEGRAM, "1", "unknown update", cursor=9))
    store.drop(Dropped(Platform.TELEGRAM, "1", "unknown update", cursor=3))
    assert store.cursor(Platform.TELEGRAM, "1") == 3


def rated(outbound_id: str, customer: str = "c1") -> Rated:
    return Rated(Platform.TELEGRAM, "1", customer, outbound_id, Rating.DOWN)


def test_a_rating_is_kept_with_the_reply(store: Store, engine: Engine) -> None:
    store.accept(inbound())
    answered(store, claimed(store), "good morning")
    claim, sending = begun(store)
    store.sent(claim, Delivery("1"))
    assert store.rate(rated(sending.message.id)).receipt is Receipt.ACCEPTED
    assert [line.rating for line in Reader(engine).history(inbound().address, "c1")] == [None, Rating.DOWN]


def test_only_the_customers_own_rating_counts(store: Store) -> None:
    store.accept(inbound())
    answered(store, claimed(store), "good morning")
    _, sending = begun(store)
    assert store.rate(rated(sending.message.id, customer="c2")).receipt is Receipt.DROPPED
    assert store.rate(rated("f" * 32)).receipt is Receipt.DROPPED


def test_only_the_last_part_of_a_reply_can_be_rated_and_no_notice(store: Store) -> None:
    store.accept(inbound())
    claim = claimed(store)
    verdicts = tuple(Verdict(line.id, Outcome.ANSWERED) for line in store.waiting(claim).lines)
    says = (Say(OutboundKind.REPLY, ("one", "two")), Say(OutboundKind.NOTICE, ("three",)))
    store.finish(claim, Settlement(verdicts, says))
    found = {}
    for _ in range(3):
        claim, sending = begun(store)
        store.sent(claim, Delivery("1"))
        found[sending.message.text] = sending.message.rateable
    assert found == {"one": False, "two": True, "three": False}


def test_two_people_in_one_group_never_share_a_history(store: Store) -> None:
    store.accept(inbound("mine", event="1", customer="a", chat="group"))
    store.accept(inbound("yours", event="2", customer="b", chat="group"))
    first, second = claimed(store), claimed(store)
    assert [line.text for line in store.waiting(first).lines] == ["mine"]
    assert [line.text for line in store.waiting(second).lines] == ["yours"]


def test_a_burst_is_one_job(store: Store) -> None:
    for number in range(3):
        store.accept(inbound(f"part {number}", event=str(number)))
    claim = claimed(store)
    assert [line.text for line in store.waiting(claim).lines] == ["part 0", "part 1", "part 2"]
    answered(store, claim, "one answer")
    assert store.claim(JobKind.ATTEND, LEASE) is None


def test_a_message_that_comes_while_the_bot_writes_is_attended_to_afterwards(store: Store) -> None:
    store.accept(inbound("first", event="1"))
    claim = claimed(store)
    waiting = store.waiting(claim)
    store.accept(inbound("second", event="2"))
    assert store.claim(JobKind.ATTEND, LEASE) is None, "one conversation, one running job"
    verdict = Verdict(waiting.lines[0].id, Outcome.ANSWERED)
    store.finish(claim, Settlement((verdict,), (Say(OutboundKind.REPLY, ("to the first",)),)))
    later = store.waiting(claimed(store))
    assert [line.text for line in later.history] == ["first", "to the first"]
    assert [line.text for line in later.lines] == ["second"]


def test_finishing_stores_mood_reply_and_delivery_as_one(store: Store, engine: Engine) -> None:
    message = inbound("太差了")
    store.accept(message)
    claim = claimed(store)
    line = store.waiting(claim).lines[0]
    call = Call(Reason.NEGATIVE, line.id, ANGRY)
    settlement = Settlement(
        (Verdict(line.id, Outcome.ESCALATED, ANGRY),), (Say(OutboundKind.REPLY, ("抱歉",), "77"),), call
    )
    store.finish(claim, settlement)
    trace = Reader(engine).trace(line.id)
    assert trace is not None
    assert [(each.author, each.text) for each in trace.answers] == [(Author.BOT, "抱歉")]
    assert (trace.line.sentiment, trace.line.outcome) == (ANGRY, Outcome.ESCALATED)
    sendings = [begun(store)[1], begun(store)[1]]
    assert {(each.message.kind, each.message.address, each.message.reply_to) for each in sendings} == {
        (OutboundKind.REPLY, message.address, "77"),
        (OutboundKind.CARD, AGENTS, ""),
    }


def test_who_lost_the_lease_stores_nothing(store: Store, clock: TurnableClock) -> None:
    store.accept(inbound())
    slow = claimed(store)
    clock.advance(31)
    quick = claimed(store)
    with pytest.raises(LeaseLost):
        answered(store, slow, "too late")
    answered(store, quick, "in time")
    assert begun(store)[1].message.text == "in time"
    assert store.claim(JobKind.DELIVER, LEASE) is None


def test_a_claim_fits_no_later_job_when_its_own_was_done_by_another(store: Store, clock: TurnableClock) -> None:
    store.accept(inbound())
    slow = claimed(store)
    clock.advance(31)
    answered(store, claimed(store), "in time")
    store.accept(inbound(event="2"))
    claimed(store)
    with pytest.raises(LeaseLost):
        answered(store, slow, "too late")


def test_the_customer_s_history_holds_a_reply_once_its_sending_has_begun(store: Store, engine: Engine) -> None:
    message = inbound("hi")
    store.accept(message)
    answered(store, claimed(store), "hello")

    def seen() -> list[str]:
        return [line.text for line in Reader(engine).history(message.address, "c1")]

    assert seen() == ["hi"]
    claim, _ = begun(store)
    assert seen() == ["hi", "hello"]
    store.postpone(claim, timedelta(), "refused", unknown=False)
    assert seen() == ["hi"]


def test_a_renewed_lease_is_kept(store: Store, clock: TurnableClock) -> None:
    store.accept(inbound())
    claim = claimed(store)
    clock.advance(20)
    assert store.renew([claim], LEASE) == []
    clock.advance(20)
    assert store.claim(JobKind.ATTEND, LEASE) is None
    clock.advance(20)
    taken = claimed(store)
    assert store.renew([claim, taken], LEASE) == [claim]


def test_an_attempt_is_a_claim_that_did_not_end_in_a_shutdown(store: Store, clock: TurnableClock) -> None:
    store.accept(inbound())
    store.release(claimed(store))
    assert claimed(store).attempt == 1
    crash(store, clock)
    second = claimed(store)
    assert second.attempt == 2
    store.retry(second, timedelta(seconds=4), "engine raised")
    assert store.claim(JobKind.ATTEND, LEASE) is None
    clock.advance(4)
    assert claimed(store).attempt == 3


def test_parts_arrive_in_order_even_when_the_first_must_wait(store: Store, clock: TurnableClock) -> None:
    store.accept(inbound())
    answered(store, claimed(store), "one", "two")
    claim, sending = begun(store)
    assert sending.message.text == "one"
    store.postpone(claim, timedelta(seconds=5), "429", unknown=False)
    assert store.claim(JobKind.DELIVER, LEASE) is None, "the second part must not overtake"
    clock.advance(5)
    claim, sending = begun(store)
    assert (sending.message.text, sending.message.maybe_sent, claim.attempt) == ("one", False, 1)
    store.sent(claim, Delivery("p1"))
    assert begun(store)[1].message.text == "two"


def test_a_delay_of_the_platform_is_not_an_attempt_but_an_unknown_outcome_is(
    store: Store, clock: TurnableClock
) -> None:
    store.accept(inbound())
    answered(store, claimed(store), "hi")
    claim, _ = begun(store)
    store.postpone(claim, timedelta(0), "timed out", unknown=True)
    claim, sending = begun(store)
    assert (claim.attempt, sending.message.maybe_sent, sending.unknowns) == (2, True, 1)
    store.postpone(claim, timedelta(0), "429", unknown=False)
    claim, sending = begun(store)
    assert (claim.attempt, sending.message.maybe_sent, sending.unknowns) == (2, True, 1)


def test_a_send_that_the_process_died_in_may_have_arrived(store: Store, clock: TurnableClock) -> None:
    store.accept(inbound())
    answered(store, claimed(store), "hi")
    begun(store)
    crash(store, clock)
    _, sending = begun(store)
    assert (sending.message.maybe_sent, sending.unknowns) == (True, 1)


def test_a_reply_is_dropped_once_a_human_claimed(store: Store) -> None:
    accepted = store.accept(inbound())
    answered(store, claimed(store), "the bot's words")
    assert accepted.conversation_id is not None
    assert store.change_owner(accepted.conversation_id, OwnerEvent.CLAIM) is Owner.HUMAN
    assert store.begin_send(claimed(store, JobKind.DELIVER)) is None
    assert store.claim(JobKind.DELIVER, LEASE) is None


def test_a_claim_while_the_bot_writes_silences_the_answer(store: Store, engine: Engine) -> None:
    message = inbound()
    accepted = store.accept(message)
    claim = claimed(store)
    assert accepted.conversation_id is not None
    store.change_owner(accepted.conversation_id, OwnerEvent.CLAIM)
    answered(store, claim, "the bot's words")
    assert [line.outcome for line in Reader(engine).history(message.address, "c1")] == [Outcome.SILENT]
    assert store.claim(JobKind.DELIVER, LEASE) is None


def test_a_conversation_has_one_open_escalation_and_its_card_is_edited(store: Store) -> None:
    for event in ("1", "2"):
        store.accept(inbound("太差了", event=event))
        claim = claimed(store)
        line = store.waiting(claim).lines[0]
        assert store.waiting(claim).conversation.owner is (Owner.BOT if event == "1" else Owner.WAITING)
        store.finish(
            claim,
            Settlement((Verdict(line.id, Outcome.ESCALATED, ANGRY),), call=Call(Reason.NEGATIVE, line.id, ANGRY)),
        )
        claim, sending = begun(store)
        assert sending.escalation is not None
        assert (sending.escalation.id, sending.escalation.times) == (1, int(event))
        assert sending.message.edits == ("" if event == "1" else "posted-1")
        store.sent(claim, Delivery("posted-1"))


def test_calls_that_come_before_the_card_was_sent_need_no_second_card(store: Store) -> None:
    for event in ("1", "2", "3"):
        store.accept(inbound("太差了", event=event))
        claim = claimed(store)
        line = store.waiting(claim).lines[0]
        store.finish(
            claim, Settlement((Verdict(line.id, Outcome.ESCALATED),), call=Call(Reason.NEGATIVE, line.id, ANGRY))
        )
    claim, sending = begun(store)
    assert sending.escalation is not None
    assert sending.escalation.times == 3
    store.sent(claim, Delivery("p"))
    assert store.claim(JobKind.DELIVER, LEASE) is None


def test_after_a_release_a_new_call_opens_a_new_escalation(store: Store) -> None:
    ids = []
    for event in ("1", "2"):
        accepted = store.accept(inbound(event=event))
        claim = claimed(store)
        answered(store, claim, call=Call(Reason.ASKED, accepted.message_id))
        while (claim_ := store.claim(JobKind.DELIVER, LEASE)) and (sending := store.begin_send(claim_)):
            assert sending.escalation is not None
            ids.append(sending.escalation.id)
            store.sent(claim_, Delivery(event))
        assert accepted.conversation_id is not None
        assert store.change_owner(accepted.conversation_id, OwnerEvent.RELEASE) is Owner.BOT
    assert ids == [1, 1, 2], "the first card is shown again: the customer came back"


def test_an_undeliverable_reply_calls_a_human_and_an_undeliverable_card_does_not_loop(store: Store) -> None:
    store.accept(inbound())
    answered(store, claimed(store), "hi")
    claim, _ = begun(store)
    store.bury_delivery(claim, "Forbidden: bot was blocked by the user")
    claim, sending = begun(store)
    assert sending.escalation is not None
    assert sending.escalation.reason is Reason.UNDELIVERED
    store.bury_delivery(claim, "channel_not_found")
    assert store.claim(JobKind.DELIVER, LEASE) is None


def test_a_dead_attend_job_leaves_the_lane_free(store: Store) -> None:
    message: InboundMessage = inbound(event="1")
    accepted = store.accept(message)
    assert accepted.message_id is not None
    settlement = Settlement((Verdict(accepted.message_id, Outcome.DEAD),), call=Call(Reason.FAILED, None))
    store.bury_attend(claimed(store), settlement, "engine raised")
    store.accept(inbound("again", event="2"))
    assert [line.text for line in store.waiting(claimed(store)).lines] == ["again"]


def test_a_trace_tells_the_whole_way_of_a_message(store: Store, engine: Engine) -> None:
    accepted = store.accept(inbound("太差了"))
    claim = claimed(store)
    assert accepted.message_id is not None
    answered(store, claim, "抱歉", call=Call(Reason.NEGATIVE, accepted.message_id, ANGRY))
    store.sent(begun(store)[0], Delivery("p1"))
    trace = Reader(engine).trace(accepted.message_id)
    assert trace is not None
    assert [line.text for line in trace.answers] == ["抱歉"]
    assert {(each.kind, each.state) for each in trace.sent} == {
        (OutboundKind.REPLY, OutboundState.SENT),
        (OutboundKind.CARD, OutboundState.PENDING),
    }
    assert trace.escalation is not None
    assert Reader(engine).trace(999) is None


def test_the_load_counts_jobs_and_open_calls(store: Store, engine: Engine) -> None:
    assert Reader(engine).load().jobs == 0
    accepted = store.accept(inbound())
    assert Reader(engine).load().jobs == 1
    answered(store, claimed(store), call=Call(Reason.ASKED, accepted.message_id))
    assert Reader(engine).load().open_escalations == 1


# -- edits -----------------------------------------------------------------------------------------


def edited(text: str, of: str = "e1", event: str = "edit", cursor: int | None = None) -> Edited:
    return Edited(Platform.TELEGRAM, "1", event, of, text, cursor)


def test_an_edit_of_a_message_that_waits_replaces_it(store: Store) -> None:
    store.accept(inbound("helo", cursor=1))
    assert store.edit(edited("hello", cursor=2)).receipt is Receipt.ACCEPTED
    assert store.cursor(Platform.TELEGRAM, "1") == 2
    assert [line.text for line in store.waiting(claimed(store)).lines] == ["hello"]


def test_an_edit_while_the_bot_writes_voids_what_it_writes(store: Store) -> None:
    store.accept(inbound("helo"))
    claim = claimed(store)
    store.edit(edited("hello"))
    with pytest.raises(LeaseLost):
        answered(store, claim, "answer to helo")
    anew = claimed(store)
    assert (anew.attempt, [line.text for line in store.waiting(anew).lines]) == (1, ["hello"])
    answered(store, anew, "answer to hello")
    assert store.claim(JobKind.ATTEND, LEASE) is None
    assert begun(store)[1].message.text == "answer to hello"


def test_an_edit_of_an_answered_message_is_kept_beside_it_and_attended_to_by_nobody(
    store: Store, engine: Engine
) -> None:
    store.accept(inbound("helo"))
    answered(store, claimed(store), "answer")
    begun(store)
    assert store.edit(edited("hello")).receipt is Receipt.ACCEPTED
    lines = Reader(engine).history(inbound().address, "c1")
    assert [(line.text, line.kind, line.outcome) for line in lines] == [
        ("helo", InboundKind.TEXT, Outcome.ANSWERED),
        ("answer", InboundKind.TEXT, None),
        ("hello", InboundKind.EDIT, Outcome.NOTED),
    ]
    assert store.claim(JobKind.ATTEND, LEASE) is None


def test_an_edit_shows_on_the_card_where_a_human_was_called(store: Store) -> None:
    store.accept(inbound("太差"))
    claim = claimed(store)
    call = Call(Reason.NEGATIVE, store.waiting(claim).lines[0].id, ANGRY)
    answered(store, claim, "sorry", call=call)
    sent = [begun(store) for _ in range(2)]
    for each, sending in sent:
        store.sent(each, Delivery(f"p-{sending.message.kind}"))
    store.edit(edited("太差了，三天没到"))
    _, card = begun(store)
    assert card.message.edits == "p-card"
    assert card.escalation is not None
    assert card.escalation.recent[-1].text == "太差了，三天没到"
    assert card.escalation.times == 1


@pytest.mark.parametrize(
    "edit",
    [edited("hello"), edited("new", of="unknown"), Edited(Platform.SLACK, "1", "edit", "e1", "new")],
    ids=["nothing changed", "unknown message", "another platform's"],
)
def test_an_edit_of_nothing_changes_nothing(store: Store, edit: Edited) -> None:
    store.accept(inbound("hello"))
    assert store.edit(edit).receipt is Receipt.DROPPED
    assert [line.text for line in store.waiting(claimed(store)).lines] == ["hello"]


def test_a_redelivered_edit_is_kept_once(store: Store, engine: Engine) -> None:
    store.accept(inbound("helo"))
    answered(store, claimed(store), "answer")
    receipts = [store.edit(edited("hello")).receipt for _ in range(2)]
    assert receipts == [Receipt.ACCEPTED, Receipt.DROPPED]
    assert [line.text for line in Reader(engine).history(inbound().address, "c1")] == ["helo", "hello"]


def test_a_picture_whose_caption_is_edited_in_time_is_read_as_words(store: Store) -> None:
    store.accept(inbound("photo", kind=InboundKind.MEDIA))
    store.edit(edited("is this the blue one?"))
    (line,) = store.waiting(claimed(store)).lines
    assert (line.kind, line.text) == (InboundKind.TEXT, "is this the blue one?")


# -- chats that move -------------------------------------------------------------------------------


def test_a_chat_that_moves_takes_its_history_and_what_is_to_be_sent_along(store: Store, engine: Engine) -> None:
    store.accept(inbound("one", event="1", chat="-5"))
    answered(store, claimed(store), "answer")
    store.move(Moved(Platform.TELEGRAM, "1", "-5", "-1005", cursor=8))
    assert store.cursor(Platform.TELEGRAM, "1") == 8
    assert begun(store)[1].message.address.chat == "-1005"
    store.accept(inbound("two", event="2", chat="-1005"))
    waiting = store.waiting(claimed(store))
    assert [line.text for line in (*waiting.history, *waiting.lines)] == ["one", "answer", "two"]
    assert Reader(engine).history(inbound(chat="-5").address, "c1") == []


def test_who_wrote_at_the_new_place_already_goes_on_there(store: Store) -> None:
    store.accept(inbound("old", event="1", chat="-5"))
    store.accept(inbound("new", event="2", chat="-1005"))
    store.accept(inbound("another", event="3", chat="-5", customer="c2"))
    store.move(Moved(Platform.TELEGRAM, "1", "-5", "-1005"))
    places = {
        waiting.lines[0].text: waiting.conversation.address.chat
        for waiting in (store.waiting(claimed(store)) for _ in range(3))
    }
    assert places == {"old": "-5", "new": "-1005", "another": "-1005"}


def test_other_chats_and_platforms_stay_where_they_are(store: Store) -> None:
    store.accept(inbound("hello", chat="-6"))
    store.move(Moved(Platform.TELEGRAM, "1", "-5", "-1005"))
    store.move(Moved(Platform.SLACK, "1", "-6", "-1006"))
    assert store.waiting(claimed(store)).conversation.address.chat == "-6"
