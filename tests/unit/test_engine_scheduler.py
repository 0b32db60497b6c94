"""Who goes next: properties that hold whatever arrives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler import RESERVE, Item, Scheduler

# What arrives before a step: labels (True) and replies, with the tokens of their prompts.
arrivals = st.lists(st.lists(st.tuples(st.booleans(), st.integers(1, 300)), max_size=4), min_size=1, max_size=15)


def advance(line: Scheduler, step: list[tuple[Item, int]], length: int) -> None:
    """As the engine does: a label leaves once it is read, a reply after `length` tokens of its own."""
    for item, count in step:
        item.waiting -= count
        if item.waiting:
            continue
        if item.urgent or item.said == length:  # type: ignore[attr-defined]  # Reply's own
            line.remove(item)
        else:
            item.said += 1  # type: ignore[attr-defined]
            item.waiting, item.speaking = 1 + item.said % 4, True  # type: ignore[attr-defined]  # some guess ahead


class Reply(Item):
    """An item that counts what it said."""

    said = 0


@given(arrivals, st.integers(RESERVE + 1, 128), st.integers(1, 5))
def test_every_request_ends_and_no_step_is_empty_or_over_its_budget(
    arriving: list[list[tuple[bool, int]]], budget: int, length: int
) -> None:
    line, items = Scheduler(budget), list[Item]()
    for step_of_arrival in arriving:
        for urgent, tokens in step_of_arrival:
            items.append(Reply(urgent, tokens))
            line.add(items[-1])
        advance(line, checked(line, budget), length)
    total = sum(tokens for step_of_arrival in arriving for _, tokens in step_of_arrival) + 4 * len(items) * (length + 1)
    for _ in range(total + 1):
        if not len(line):
            break
        advance(line, checked(line, budget), length)
    assert not len(line)


def checked(line: Scheduler, budget: int) -> list[tuple[Item, int]]:
    step = line.plan()
    assert bool(step) == bool(len(line))
    assert sum(count for _, count in step) <= budget
    assert all(1 <= count <= item.waiting for item, count in step)
    assert all(count == item.waiting for item, count in step if item.speaking)
    assert len({id(item) for item, _ in step}) == len(step)
    return step


@given(st.integers(1, 400), st.integers(1, 60))
def test_a_reply_is_read_however_many_labels_come(tokens: int, label: int) -> None:
    line, reply = Scheduler(64), Reply(False, tokens)
    line.add(reply)
    steps = 0
    while not reply.speaking:
        for _ in range(5):
            line.add(Reply(True, label))
        advance(line, line.plan(), 1)
        steps += 1
    assert steps <= 2 * -(-tokens // RESERVE)


def test_who_speaks_goes_on_at_every_step_whatever_is_read_beside() -> None:
    line, speaking, long = Scheduler(32), Reply(False, 1, speaking=True), Reply(False, 500)
    line.add(speaking)
    line.add(long)
    for _ in range(10):
        step = line.plan()
        assert (speaking, 1) in step
        assert sum(count for _, count in step) == 32
        long.waiting -= 31


def test_a_label_goes_alone_before_a_prompt_that_came_earlier_but_not_twice() -> None:
    line, prompt, label = Scheduler(64), Reply(False, 500), Reply(True, 40)
    line.add(prompt)
    line.add(label)
    assert line.plan() == [(label, 40)]
    assert line.plan() == [(label, 40), (prompt, 24)]


def test_more_replies_than_a_step_holds_take_turns() -> None:
    line, replies = Scheduler(4), [Reply(False, 1, speaking=True) for _ in range(10)]
    for reply in replies:
        line.add(reply)
    served = [item for _ in range(3) for item, _ in line.plan()]
    assert {id(reply) for reply in replies} == {id(item) for item in served}
