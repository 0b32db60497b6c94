"""Guessing ahead changes how many steps a reply takes and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine import bundled, roles
from engine.draft import CONTEXT, ROWS, Index, Replies
from engine.model import Model, read
from engine.network import Segment
from engine.quantize import fp32_linear
from engine.qwen import QwenEngine
from engine.qwen2 import Qwen2
from engine.types import EngineConfig, Speaker, TextRole, Turn

QUESTION = [Turn(Speaker.USER, "你好，我的快递什么时候到？")]
GREEDY = TextRole("reply", "You work in a shop.", temperature=0, repetition_penalty=1.1, max_new_tokens=24)
WARM = TextRole("reply", "You work in a shop.", temperature=0.9, repetition_penalty=1.2, max_new_tokens=12)

tokens = st.lists(st.integers(0, 3), max_size=40)  # so few that runs come again


# -- the index ---------------------------------------------------------------------------------------


@given(tokens, st.integers(1, 8))
def test_what_is_guessed_followed_the_same_tokens_when_they_last_occurred(said: list[int], most: int) -> None:
    index = Index(said)
    for end in range(CONTEXT, len(said)):
        run = said[end - CONTEXT : end]
        latest = max(each for each in range(CONTEXT, len(said)) if said[each - CONTEXT : each] == run)
        assert index.after(said[:end], most) == said[latest : latest + most]


@given(st.lists(tokens, max_size=12), st.integers(1, 4))
def test_only_the_latest_replies_are_remembered(said: list[list[int]], most: int) -> None:
    replies, fresh = Replies(most), Replies(most)
    for reply in said:
        replies.learn([9, 9, 9], reply)
    for reply in said[-most:]:
        fresh.learn([9, 9, 9], reply)
    # A run whose latest occurrence was forgotten may be unknown although an older reply that stays holds it too;
    # what is known is the same.
    runs = {tuple(reply[at : at + CONTEXT]) for reply in said for at in range(len(reply) - CONTEXT)}
    for run in runs:
        assert list(replies.after(run, 3)) == list(fresh.after(run, 3))
    assert len(replies._index._after) == len(fresh._index._after)


def test_the_beginning_of_a_reply_can_be_guessed_from_its_first_token() -> None:
    replies = Replies()
    replies.learn([1, 2, 3, 4], [7, 8, 9, 10])
    assert list(replies.after([2, 3, 4, 7], 3)) == [8, 9, 10]
    assert list(replies.after([2, 3, 4, 6], 3)) == []


# -- the engine --------------------------------------------------------------------------------------


class Counting:
    """The network, with the tokens of every step noted."""

    def __init__(self, network: Qwen2) -> None:
        self.network, self.positions, self.begin = network, network.positions, network.begin
        self.steps: list[list[int]] = []

    def forward(self, segments: Sequence[Segment]) -> torch.Tensor:
        self.steps.append([len(segment.tokens) for segment in segments])
        return self.network.forward(segments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


@pytest.fixture(scope="module")
def served(random_model: Path) -> Model:
    return read(random_model, fp32_linear, lambda share: None)


Make = Callable[..., tuple[QwenEngine, Counting]]


@pytest.fixture
def make(served: Model) -> Iterator[Make]:
    import asyncio

    made: list[QwenEngine] = []

    def build(model: Model = served, **options: Any) -> tuple[QwenEngine, Counting]:
        network = Counting(model.network)
        engine = QwenEngine(network, model.stops, model.tokenizer, EngineConfig(threads=1, **options))  # type: ignore[arg-type]
        made.append(engine)
        return engine, network

    yield build
    for engine in made:
        asyncio.run(engine.close())


async def test_a_greedy_reply_is_the_same_token_for_token_and_comes_in_fewer_steps(make: Make) -> None:
    (plain, unhurried), (guessing, network) = make(guess=False), make()
    expected = await plain.write(GREEDY, QUESTION)
    first, second = await guessing.write(GREEDY, QUESTION), await guessing.write(GREEDY, QUESTION)
    assert first.text == second.text == expected.text
    assert first.tokens == second.tokens == expected.tokens
    guessed, right = guessing.guesses
    assert 0 < right <= guessed
    assert len(network.steps) < 2 * len(unhurried.steps) - right / 2
    assert max(count for step in network.steps[-5:] for count in step) > 1


@pytest.mark.parametrize("seed", range(12))
async def test_a_drawn_reply_is_the_one_that_the_same_chance_draws_without_guessing(make: Make, seed: int) -> None:
    (plain, _), (guessing, _) = make(guess=False, seed=seed), make(seed=seed)
    expected = await plain.write(WARM, QUESTION)
    await guessing.write(GREEDY, QUESTION)  # something to guess from, and wrong
    assert (await guessing.write(WARM, QUESTION)).text == expected.text
    assert (await guessing.write(WARM, QUESTION)).text == expected.text  # something right


async def test_replies_are_drawn_as_often_with_guessing_as_without(make: Make) -> None:
    """Two-sample chi-square over the replies of three tokens; 99.9 % of fair samples stay below the bound."""
    from scipy.stats import chi2_contingency

    short = TextRole("reply", "You work in a shop.", temperature=0.35, repetition_penalty=1.0, max_new_tokens=3)
    counts = []
    for guess in (False, True):
        engine, _ = make(guess=guess)
        torch.manual_seed(5 + guess)
        counts.append(Counter([(await engine.write(short, QUESTION)).text for _ in range(400)]))
    common = [text for text in counts[0] | counts[1] if counts[0][text] + counts[1][text] >= 20]
    table = [[count[text] for text in common] for count in counts]
    for row in table:
        row.append(400 - sum(row) + 1)  # all the rarer ones
    assert len(common) >= 2
    assert chi2_contingency(table).pvalue > 0.001


async def test_a_wrong_guess_leaves_no_trace_in_the_history(make: Make) -> None:
    (plain, _), (guessing, _) = make(guess=False, seed=1), make(seed=1)
    for other in range(4):
        await guessing.write(WARM, [Turn(Speaker.USER, f"something else {other}")])
    talk = list(QUESTION)
    for question in ("and the invoice?", "好的", "really?"):
        expected = await plain.write(WARM, talk, None, "one")
        reply = await guessing.write(WARM, talk, None, "one")
        assert reply.text == expected.text
        talk += [Turn(Speaker.ASSISTANT, reply.text), Turn(Speaker.USER, question)]


async def test_the_more_replies_are_written_at_once_the_less_is_guessed(make: Make) -> None:
    import asyncio

    engine, network = make()
    await engine.write(GREEDY, QUESTION)
    network.steps.clear()
    await asyncio.gather(*(engine.write(GREEDY, QUESTION) for _ in range(ROWS)))
    writing = [step for step in network.steps if len(step) == ROWS]
    assert writing
    assert all(sum(step) <= 2 * ROWS or max(step) > ROWS for step in writing)


async def test_what_was_answered_before_is_guessed_when_it_is_answered_again(make: Make) -> None:
    engine, _ = make(read(bundled.PATH, fp32_linear, lambda share: None))
    role = replace(roles.reply(), temperature=0)
    for _ in range(3):
        await engine.write(role, [Turn(Speaker.USER, "你好，请问你们几点开门？")])
    guessed, right = engine.guesses
    assert right > guessed / 2
