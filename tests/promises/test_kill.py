"""Killed at any step, and claimed at any step: nothing acknowledged is lost, doubled or said over a human.

The kills are SIGKILL, in forked processes. Each test prints what it exercised; a seed draws the same plan again.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.promises.judge import FIRST, MESSAGES, THEN
from tests.promises.trial import Carry, Plan, Report

pytestmark = pytest.mark.timeout(600)  # the machine may be busy: a trial is some 0.2 seconds of work

STEPS = 90
"""About as many as a life takes that nothing disturbs and in which people write at once."""


def kept(reports: list[Report]) -> Counter[str]:
    """Every promise, in every trial. Returns how often what happened."""
    counts = sum((report.exercised for report in reports), Counter[str]())
    print(f"{len(reports)} trials:", ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    assert [(report.plan, report.broken) for report in reports if report.broken] == []
    return counts


def killed(carry: Carry, plan: Plan, every: int) -> None:
    """At every step, or at each `every`th from a random one on."""
    (undisturbed,) = carry([plan])
    steps = range(random.randint(1, every), len(undisturbed.steps) + 1, every)
    reports = carry([Plan(plan.messages, (step,)) for step in steps])
    counts = kept([undisturbed, *reports])
    at = {name for report in reports for name in report.killed_at}
    print(f"killed at {counts['killed']} steps of {len(at)} kinds")
    assert counts["killed"] > 0.9 * len(steps)  # how often previews are renewed varies, and with it the end


def drawn(seed: int) -> Plan:
    """Up to four kills, and in every second trial a claim."""
    draw = random.Random(seed)
    kills = tuple(draw.randint(1, STEPS) for _ in range(draw.randint(1, 4)))
    return Plan(MESSAGES, kills, draw.choice((None, (draw.randint(0, 2), draw.randint(1, STEPS)))), seed)


def killed_at_random(carry: Carry, trials: int) -> None:
    first = random.randrange(10**9)
    print(f"seeds {first} to {first + trials - 1}")
    reports = carry([drawn(seed) for seed in range(first, first + trials)])
    counts = kept(reports)
    assert all(counts[what] for what in ("killed", "claimed", "resent"))


def claimed(carry: Carry, every: int) -> None:
    """At every step, or at each `every`th from a random one on."""
    (undisturbed,) = carry([Plan(THEN)])
    steps = range(random.randint(1, every), len(undisturbed.steps) + 1, every)
    reports = carry([Plan(THEN, claim_at=(0, step)) for step in steps])
    assert kept(reports)["claimed"] > 1.7 * len(steps)  # how often previews are renewed varies, and with it the end


def test_a_kill_while_angry_messages_are_answered_and_humans_called_costs_nothing(carry: Carry) -> None:
    killed(carry, Plan(FIRST), every=4)


def test_no_reply_starts_after_a_claim(carry: Carry) -> None:
    claimed(carry, every=4)


def test_up_to_four_kills_at_random_steps_with_failing_sends_and_claims_cost_nothing(carry: Carry) -> None:
    killed_at_random(carry, 10)


@pytest.mark.slow
def test_a_kill_at_any_step_of_the_whole_scenario_costs_nothing(carry: Carry) -> None:
    killed(carry, Plan(), every=1)


@pytest.mark.slow
def test_no_reply_starts_after_a_claim_whichever_step_it_comes_at(carry: Carry) -> None:
    claimed(carry, every=1)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_two_thousand_trials_of_up_to_four_kills_cost_nothing(carry: Carry) -> None:
    killed_at_random(carry, 2_000)
