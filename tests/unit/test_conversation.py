"""Who owns a conversation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.conversation import Owner, OwnerEvent, next_owner


@pytest.mark.parametrize(
    ("before", "event", "after"),
    [
        (Owner.BOT, OwnerEvent.CALL, Owner.WAITING),
        (Owner.WAITING, OwnerEvent.CALL, Owner.WAITING),
        (Owner.WAITING, OwnerEvent.CLAIM, Owner.HUMAN),
        (Owner.BOT, OwnerEvent.CLAIM, Owner.HUMAN),
        (Owner.HUMAN, OwnerEvent.CALL, Owner.HUMAN),
        (Owner.HUMAN, OwnerEvent.RELEASE, Owner.BOT),
        (Owner.WAITING, OwnerEvent.RELEASE, Owner.BOT),
        (Owner.BOT, OwnerEvent.RELEASE, Owner.BOT),
    ],
)
def test_the_owner_after_an_event(before: Owner, event: OwnerEvent, after: Owner) -> None:
    assert next_owner(before, event) is after


@given(st.sampled_from(Owner), st.lists(st.sampled_from(OwnerEvent)))
def test_only_a_claim_silences_the_bot_and_only_a_release_gives_it_its_voice_back(
    owner: Owner, events: list[OwnerEvent]
) -> None:
    for event in events:
        after = next_owner(owner, event)
        assert next_owner(after, event) is after, "a repeated event changes nothing"
        if (owner is Owner.HUMAN) != (after is Owner.HUMAN):
            assert event is (OwnerEvent.CLAIM if after is Owner.HUMAN else OwnerEvent.RELEASE)
        owner = after
