"""The engine on random weights: what it says equals what transformers says, and its thread keeps its promises."""

import asyncio
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from bot.errors import ConfigError, DeadlineExceeded, EngineClosed, EngineError
from engine import bundled, roles
from engine.chat import Chat
from engine.history import MESSAGE_ROOM
from engine.kv import Cache
from engine.model import Model, read
from engine.network import Segment
from engine.quantize import fp32_linear
from engine.qwen import CONTENT_FREE, QwenEngine
from engine.qwen2 import Qwen2
from engine.scheduler import BUDGET
from engine.types import Engine, EngineConfig, LabelRole, Speaker, StopReason, TextRole, Turn

GREEDY = TextRole("reply", "You work in a shop.", temperature=0.0, repetition_penalty=1.0, max_new_tokens=40)
MOOD = LabelRole("mood", "Say 正面 or 负面.", "{text}", ("正面", "负面"))
QUESTION = [Turn(Speaker.USER, "你好，我的快递什么时候到？")]
TALK = [*QUESTION, Turn(Speaker.ASSISTANT, "今天下午。"), Turn(Speaker.USER, "and the invoice?")]


class Watched:
    """The network, with every step noted, and held up, falsified or slowed where a test wants it.

    `steps` holds for each step the caches and the tokens they took up. `change` gets the logits (vocabulary,) of each
    reply, `change_labels` those (labels,) of each label.
    """

    def __init__(self, network: Qwen2) -> None:
        self.network, self.positions, self.begin = network, network.positions, network.begin
        self.steps: list[list[tuple[Cache, list[int]]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.change: Callable[[torch.Tensor], object] = lambda logits: None
        self.change_labels: Callable[[torch.Tensor], object] = lambda logits: None

    def forward(self, segments: Sequence[Segment]) -> torch.Tensor:
        self.steps.append([(segment.past, list(segment.tokens)) for segment in segments])
        assert self.gate.wait(10)
        return self.network.forward(segments)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.network.logits(hidden).clone()
        for row in logits:
            self.change(row)
        return logits

    def logits_of(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        logits = self.network.logits_of(hidden, tokens).clone()
        for row in logits:
            self.change_labels(row)
        return logits

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the model from its next step to the end of the block."""
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()

    async def called(self, times: int) -> None:
        async with asyncio.timeout(10):
            while len(self.steps) < times:  # noqa: ASYNC110 - the steps are made on another thread
                await asyncio.sleep(0.001)

    def read(self, cache: Cache) -> list[int]:
        """All tokens that were read into `cache`, in order."""
        return [token for step in self.steps for each, tokens in step if each is cache for token in tokens]

    def last_cache(self) -> Cache:
        return self.steps[-1][-1][0]


@pytest.fixture(scope="module")
def served(random_model: Path) -> Model:
    return read(random_model, fp32_linear, lambda share: None)


@pytest.fixture(scope="module")
def model(random_model: Path) -> Qwen2ForCausalLM:
    """The reference."""
    return Qwen2ForCausalLM.from_pretrained(random_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(served: Model) -> PreTrainedTokenizerBase:
    return served.tokenizer


@pytest.fixture(scope="module")
def chat(tokenizer: PreTrainedTokenizerBase) -> Chat:
    return Chat(tokenizer)


@pytest.fixture
def watched(served: Model) -> Watched:
    return Watched(served.network)


Make = Callable[..., QwenEngine]


@pytest.fixture
def make(watched: Watched, served: Model) -> Iterator[Make]:
    """Engines on the watched model, one thread of torch each; closed when the test ends."""
    made: list[QwenEngine] = []

    def build(**options: Any) -> QwenEngine:
        config = EngineConfig(threads=1, **options)
        engine = QwenEngine(watched, served.stops, served.tokenizer, config)  # type: ignore[arg-type]
        made.append(engine)
        return engine

    yield build
    watched.gate.set()
    for engine in made:
        asyncio.run(engine.close())


@pytest.fixture
def engine(make: Make) -> QwenEngine:
    return make()


# -- what it says ----------------------------------------------------------------------------------


def generated(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: list[int], **options: Any
) -> list[int]:
    """transformers' own greedy continuation of `prompt`, ended by any special token."""
    output = model.generate(torch.tensor([prompt]), do_sample=False, eos_token_id=tokenizer.all_special_ids, **options)
    return [token for token in output[0, len(prompt) :].tolist() if token not in tokenizer.all_special_ids]


@pytest.mark.parametrize("turns", [QUESTION, TALK], ids=["one turn", "three turns"])
@pytest.mark.parametrize("penalty", [1.0, 1.2, 1.7])
async def test_a_greedy_reply_is_transformers_own_token_for_token(
    make: Make, watched: Watched, model: Any, tokenizer: Any, chat: Chat, turns: list[Turn], penalty: float
) -> None:
    role = TextRole("reply", GREEDY.system, temperature=0, repetition_penalty=penalty, max_new_tokens=40)
    expected = generated(model, tokenizer, chat.prompt(role, turns), repetition_penalty=penalty, max_new_tokens=40)
    reply = await make(penalise_prompt=True).write(role, turns)
    prompt, said = chat.prompt(role, turns), expected[: reply.tokens]
    assert watched.last_cache().tokens[: len(prompt)] == prompt
    assert watched.last_cache().tokens[len(prompt) :] in (said, said[:-1])
    assert (reply.text, reply.tokens) == (chat.text(expected), len(expected))


async def test_the_repetition_penalty_counts_the_replys_own_tokens_only(
    engine: QwenEngine, model: Qwen2ForCausalLM, chat: Chat
) -> None:
    role = TextRole("reply", GREEDY.system, temperature=0, repetition_penalty=1.9, max_new_tokens=30)
    prompt, expected = chat.prompt(role, TALK), list[int]()
    for _ in range(30):
        logits = model(torch.tensor([prompt + expected])).logits[0, -1].tolist()
        scores = [
            (score / 1.9 if score > 0 else score * 1.9) if token in expected else score
            for token, score in enumerate(logits)
        ]
        expected.append(scores.index(max(scores)))
    reply = await engine.write(role, TALK)
    assert reply.text == chat.text(expected)


@pytest.mark.parametrize("word", ["发票", "<|im_end|>"], ids=["a word of the prompt", "the end of a turn"])
@pytest.mark.parametrize("penalise_prompt", [False, True])
async def test_what_the_prompt_holds_is_penalised_only_when_asked_for(
    make: Make, watched: Watched, tokenizer: Any, word: str, penalise_prompt: bool
) -> None:
    said, other = tokenizer.convert_tokens_to_ids([word, "x"]) if "<" in word else tokenizer.encode("发票x")

    def prefer(logits: torch.Tensor) -> None:
        logits[:] = -100
        logits[said], logits[other] = 10, 9

    watched.change = prefer
    role = TextRole("reply", "About 发票.", temperature=0, repetition_penalty=1.2, max_new_tokens=1)
    reply = await make(penalise_prompt=penalise_prompt).write(role, QUESTION)
    assert reply.text == ("x" if penalise_prompt else tokenizer.decode([said], skip_special_tokens=True))


async def test_a_label_is_scored_by_its_first_token_and_freed_of_its_prior(
    engine: QwenEngine, model: Qwen2ForCausalLM, tokenizer: Any
) -> None:
    def naive(text: str) -> torch.Tensor:
        messages = [{"role": "system", "content": MOOD.system}, {"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        logits = model(ids).logits[0, -1, [tokenizer.encode(label)[0] for label in MOOD.labels]]
        return torch.softmax(logits.double(), dim=-1)

    prior = torch.stack([naive(text) for text in CONTENT_FREE]).mean(dim=0)
    expected = naive("太棒了") / prior
    expected /= expected.sum()
    scores = await engine.label(MOOD, "太棒了")
    assert list(scores.probabilities) == list(MOOD.labels)
    assert list(scores.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert sum(scores.probabilities.values()) == pytest.approx(1)


async def test_a_label_is_one_step_once_the_prior_is_known_and_reads_no_word_of_its_role_again(
    engine: QwenEngine, watched: Watched, chat: Chat
) -> None:
    await engine.check(MOOD)
    before = len(watched.steps)
    await engine.label(MOOD, "好")
    assert len(watched.steps) == before + 1
    ((cache, tokens),) = watched.steps[-1]
    assert cache.tokens == chat.question(MOOD, "好")
    assert len(tokens) < len(cache.tokens) / 2


async def test_labels_that_wait_together_are_one_step_and_score_as_alone(engine: QwenEngine, watched: Watched) -> None:
    texts = ["好", "不好", "发货很快，但是东西是坏的", "what a pity", "x" * 30]
    alone = [await engine.label(MOOD, text) for text in texts]
    before = len(watched.steps)
    async with watched.held():
        first = asyncio.create_task(engine.label(MOOD, "first"))
        await watched.called(before + 1)
        tasks = [asyncio.create_task(engine.label(MOOD, text)) for text in texts]
        await asyncio.sleep(0.01)
    together = [await task for task in tasks]
    await first
    assert [len(step) for step in watched.steps[before:]] == [1, len(texts)]
    for one, other in zip(alone, together, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)


async def test_what_fails_in_a_step_of_many_fails_alone(
    engine: QwenEngine, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [await engine.label(MOOD, "好"), (await engine.write(GREEDY, QUESTION)).text]
    poison = engine._chat.question(MOOD, "毒毒毒")

    def forward(segments: Sequence[Segment]) -> torch.Tensor:
        if any([*segment.past.tokens, *segment.tokens] == poison for segment in segments):
            raise RuntimeError("out of luck")
        return Watched.forward(watched, segments)

    monkeypatch.setattr(watched, "forward", forward)
    before = len(watched.steps)
    async with watched.held():
        first = asyncio.create_task(engine.label(MOOD, "first"))
        await watched.called(before + 1)
        asked = [engine.label(MOOD, "好"), engine.label(MOOD, "毒毒毒"), engine.write(GREEDY, QUESTION)]
        tasks = [asyncio.create_task(each) for each in asked]
        await asyncio.sleep(0.01)
    _, fine, failed, reply = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert isinstance(failed, EngineError)
    assert fine.probabilities == pytest.approx(expected[0].probabilities, abs=1e-5)
    assert reply.text == expected[1]


async def test_content_free_input_favours_no_label_when_it_is_all_there_is(
    engine: QwenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.qwen.CONTENT_FREE", ("N/A",))
    scores = await engine.label(MOOD, "N/A")
    assert scores.probabilities == pytest.approx({"正面": 0.5, "负面": 0.5})


async def test_the_same_seed_writes_the_same_reply_whoever_else_writes(make: Make) -> None:
    role = TextRole("reply", "", temperature=1.0, max_new_tokens=20)
    seeded, other = make(seed=5), make(seed=6)
    alone = await seeded.write(role, QUESTION)
    beside, _ = await asyncio.gather(seeded.write(role, QUESTION), seeded.write(role, TALK))
    assert alone.text == beside.text != (await other.write(role, QUESTION)).text


# -- how a reply ends and streams ------------------------------------------------------------------


def scripted(tokens: list[int]) -> Callable[[torch.Tensor], None]:
    """Make the model say `tokens`, one a call."""
    rest = iter(tokens)

    def change(logits: torch.Tensor) -> None:
        logits[next(rest)] = 1e6

    return change


@pytest.mark.parametrize("stop", ["<|im_end|>", "<|endoftext|>", "<|im_start|>"])
async def test_a_reply_ends_at_a_special_token_which_is_no_part_of_it(
    engine: QwenEngine, watched: Watched, tokenizer: Any, stop: str
) -> None:
    watched.change = scripted([*tokenizer.encode("好的"), tokenizer.convert_tokens_to_ids(stop)])
    reply = await engine.write(GREEDY, QUESTION)
    assert (reply.text, reply.tokens, reply.stopped) == ("好的", 1, StopReason.END)


async def test_a_reply_ends_at_its_length_and_is_timed(engine: QwenEngine) -> None:
    reply = await engine.write(GREEDY, QUESTION)
    assert (reply.tokens, reply.stopped) == (40, StopReason.LENGTH)
    assert 0 < reply.first_token_s < reply.total_s


async def test_text_streams_as_it_grows_and_never_by_half_a_character(
    engine: QwenEngine, watched: Watched, tokenizer: Any
) -> None:
    said = "龘 ok 👍!"
    tokens = [token for part in said for token in tokenizer.encode(part)]
    watched.change = scripted([*tokens, tokenizer.eos_token_id])
    seen: list[str] = []
    reply = await engine.write(GREEDY, QUESTION, seen.append)
    assert seen[-1] == reply.text == said
    assert len(tokens) > len(seen) > 3
    assert all(later.startswith(earlier) and later != earlier for earlier, later in pairwise(seen))
    assert "\ufffd" not in "".join(seen)


async def test_a_character_cut_off_by_the_length_is_left_out(
    engine: QwenEngine, watched: Watched, tokenizer: Any
) -> None:
    tokens = [*tokenizer.encode("好"), *tokenizer.encode("龘")]
    watched.change = scripted(tokens)
    role = TextRole("reply", "", max_new_tokens=len(tokens) - 1)
    assert (await engine.write(role, QUESTION)).text == "好"


async def test_at_the_deadline_the_text_so_far_is_the_reply(make: Make, watched: Watched) -> None:
    watched.change = lambda logits: time.sleep(0.05)
    reply = await make(deadline_s=0.3).write(GREEDY, QUESTION)
    assert reply.stopped is StopReason.DEADLINE
    assert 1 <= reply.tokens < 10
    assert reply.text


async def test_a_request_that_waited_past_its_deadline_costs_no_model_work(make: Make, watched: Watched) -> None:
    engine = make(deadline_s=0.5)
    await engine.check(MOOD)
    await engine.check(GREEDY)
    before = len(watched.steps)
    async with watched.held():
        first = asyncio.create_task(engine.write(GREEDY, QUESTION))
        await watched.called(before + 1)
        late = [asyncio.create_task(engine.label(MOOD, "好")), asyncio.create_task(engine.write(GREEDY, QUESTION))]
        await asyncio.sleep(0.6)
    for task in late:
        with pytest.raises(DeadlineExceeded):
            await task
    assert (await first).tokens == 1
    assert len(watched.steps) == before + 1


# -- the window ------------------------------------------------------------------------------------


async def test_a_long_history_loses_its_oldest_turns(make: Make, watched: Watched, chat: Chat) -> None:
    turns = [Turn(speaker, f"turn {number} 的消息") for number in range(30) for speaker in Speaker]
    turns.append(Turn(Speaker.USER, "the newest"))
    await make(context_tokens=200).write(GREEDY, turns)
    prompt = watched.last_cache().tokens[:-39]
    kept = next(start for start in range(len(turns)) if chat.prompt(GREEDY, turns[start:]) == prompt)
    assert 200 - 2 * len(chat.encode("user turn 10 的消息")) - 20 < len(prompt) <= 200
    assert 0 < kept < len(turns) - 1
    assert turns[kept].speaker is Speaker.USER


async def test_a_message_beyond_the_window_keeps_its_head_and_tail(
    make: Make, watched: Watched, tokenizer: Any
) -> None:
    long = "HEAD " + "很长的消息。" * 500 + " TAIL"
    engine = make(context_tokens=150)
    await engine.write(GREEDY, [Turn(Speaker.USER, long)])
    written = watched.last_cache().tokens[:-39]
    await engine.label(MOOD, long)
    for prompt in (written, watched.last_cache().tokens):
        assert 140 <= len(prompt) <= 150
        assert "HEAD" in tokenizer.decode(prompt)
        assert "TAIL" in tokenizer.decode(prompt)


async def test_prompt_and_reply_stay_within_the_models_positions(make: Make, watched: Watched, model: Any) -> None:
    positions = model.config.max_position_embeddings
    role = TextRole("reply", "", max_new_tokens=positions - 100)
    watched.change = scripted([model.config.eos_token_id])
    await make(context_tokens=32_000).write(role, [Turn(Speaker.USER, "长" * 5000)])
    assert len(watched.last_cache().tokens) <= 100


async def test_a_role_whose_words_fill_the_window_is_refused(make: Make, chat: Chat) -> None:
    role = roles.reply("A", "b", ["a fact"] * 20)
    needed = len(chat.prompt(role, [])) + MESSAGE_ROOM
    await make(context_tokens=needed).check(role)
    for refused in (make(context_tokens=needed - 1).check(role), make(context_tokens=8).label(MOOD, "好")):
        with pytest.raises(ConfigError, match=r"engine\.context_tokens"):
            await refused


@pytest.mark.parametrize("turns", [[], [Turn(Speaker.ASSISTANT, "hello")]])
async def test_there_must_be_a_customers_turn_to_answer(engine: QwenEngine, turns: list[Turn]) -> None:
    with pytest.raises(EngineError, match="the last turn must be the customer's"):
        await engine.write(GREEDY, turns)


@pytest.mark.parametrize("labels", [("正面", "负面", "正面积极"), ("好", "")])
async def test_labels_that_the_model_cannot_tell_apart_are_refused_by_name(
    engine: QwenEngine, labels: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        await engine.check(LabelRole("mood", "", "{text}", labels))
    assert "mood" in str(caught.value)
    if labels[-1]:
        assert "正面 and 正面积极" in str(caught.value)


# -- one thread, many callers ----------------------------------------------------------------------


async def test_replies_grow_together_and_a_label_joins_their_next_step(engine: QwenEngine, watched: Watched) -> None:
    await engine.check(MOOD)
    await engine.check(GREEDY)
    before = len(watched.steps)
    async with watched.held():
        first = asyncio.create_task(engine.write(GREEDY, QUESTION))
        await watched.called(before + 1)
        second = asyncio.create_task(engine.write(GREEDY, TALK))
        label = asyncio.create_task(engine.label(MOOD, "好"))
        await asyncio.sleep(0.01)
    await asyncio.gather(first, second, label)
    steps = watched.steps[before:]
    assert [len(step) for step in steps[1:3]] == [2, 2]  # the label first, then the other reply's prompt
    assert len(steps[1][0][1]) == len(steps[2][0][1]) == 1
    assert [[len(tokens) for _, tokens in step] for step in steps[3:7]] == [[1, 1]] * 4
    assert len(steps) == 42


async def test_a_long_prompt_is_read_in_chunks_between_which_replies_go_on(
    engine: QwenEngine, watched: Watched
) -> None:
    long = [Turn(Speaker.USER, "很长的消息。" * 150)]
    alone = (await engine.write(GREEDY, long)).text
    before = len(watched.steps)
    async with watched.held():
        first = asyncio.create_task(engine.write(GREEDY, QUESTION))
        await watched.called(before + 1)
        second = asyncio.create_task(engine.write(GREEDY, long))
        await asyncio.sleep(0.01)
    await first
    assert (await second).text == alone
    sizes = [sum(len(tokens) for _, tokens in step) for step in watched.steps[before:]]
    assert max(sizes) <= BUDGET
    assert sizes.count(BUDGET) > 2


# -- what is not read twice --------------------------------------------------------------------------


async def test_the_next_turn_of_a_conversation_reads_only_what_is_new(
    engine: QwenEngine, watched: Watched, chat: Chat
) -> None:
    reply = await engine.write(GREEDY, QUESTION, conversation="7")
    turns = [*QUESTION, Turn(Speaker.ASSISTANT, reply.text), Turn(Speaker.USER, "and now?")]
    fresh = await engine.write(GREEDY, turns)
    before = len(watched.steps)
    again = await engine.write(GREEDY, turns, conversation="7")
    assert again.text == fresh.text
    ((_, tokens),) = watched.steps[before]
    assert len(tokens) < len(chat.prompt(GREEDY, turns)) - len(chat.prompt(GREEDY, QUESTION))


async def test_no_conversation_reads_anothers_cache(engine: QwenEngine, watched: Watched) -> None:
    await engine.write(GREEDY, QUESTION, conversation="7")
    mine = watched.last_cache()
    for name in ("8", ""):
        await engine.write(GREEDY, QUESTION, conversation=name)
        assert watched.last_cache() is not mine
    await engine.write(GREEDY, QUESTION, conversation="7")
    assert watched.last_cache() is mine


async def test_two_replies_of_one_conversation_at_once_share_no_cache(engine: QwenEngine, watched: Watched) -> None:
    alone = (await engine.write(GREEDY, TALK)).text
    await engine.write(GREEDY, QUESTION, conversation="7")
    both = await asyncio.gather(*(engine.write(GREEDY, TALK, conversation="7") for _ in range(2)))
    assert [reply.text for reply in both] == [alone, alone]


async def test_a_trimmed_or_changed_history_is_read_anew(make: Make, watched: Watched) -> None:
    engine = make(context_tokens=150)
    turns = list(QUESTION)
    for number in range(8):
        kept = await engine.write(GREEDY, turns, conversation="7")
        fresh = await engine.write(GREEDY, turns)
        assert kept.text == fresh.text
        turns += [Turn(Speaker.ASSISTANT, kept.text[:40]), Turn(Speaker.USER, f"question {number}")]


async def test_what_is_kept_of_conversations_stays_within_its_budget(make: Make) -> None:
    engine = make(cache_megabytes=1)
    for number in range(40):
        await engine.write(GREEDY, TALK, conversation=str(number))
    caches = engine._histories._caches
    assert sum(cache.nbytes for cache in caches.values()) <= 1_000_000
    assert list(caches)[-1] == "39"
    assert "0" not in caches


# -- one thread, many callers, continued -------------------------------------------------------------


async def test_replies_that_stream_side_by_side_are_what_they_are_alone(engine: QwenEngine) -> None:
    alone = [(await engine.write(GREEDY, turns)).text for turns in (QUESTION, TALK)]
    beside = await asyncio.gather(engine.write(GREEDY, QUESTION), engine.write(GREEDY, TALK))
    assert [reply.text for reply in beside] == alone


async def test_the_event_loop_runs_while_the_model_works(engine: QwenEngine, watched: Watched) -> None:
    async with watched.held():
        task = asyncio.create_task(engine.write(GREEDY, QUESTION))
        await watched.called(1)
        await asyncio.sleep(0)
        assert not task.done()
    await task


async def test_an_idle_engine_gives_back_what_was_freed_once_until_it_worked_again(
    engine: QwenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    monkeypatch.setattr("engine.qwen.IDLE_S", 0.05)
    monkeypatch.setattr("engine.qwen.give_back", lambda: given.append(0))
    for times in (1, 2):
        await engine.write(GREEDY, QUESTION)
        await asyncio.sleep(0.3)
        assert len(given) == times


async def test_cancelling_the_caller_stops_its_reply_at_the_next_token(engine: QwenEngine, watched: Watched) -> None:
    seen: list[str] = []
    async with watched.held():
        task = asyncio.create_task(engine.write(GREEDY, QUESTION, seen.append))
        await watched.called(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await engine.write(GREEDY, QUESTION)  # in steps with the cancelled one, were it still there
    assert {len(step) for step in watched.steps} == {1}
    assert seen == []


async def test_closing_ends_everything_in_flight_and_the_thread(engine: QwenEngine, watched: Watched) -> None:
    assert engine.alive
    await engine.check(GREEDY)
    await engine.check(MOOD)
    before = len(watched.steps)
    async with watched.held():
        tasks = [asyncio.create_task(engine.write(GREEDY, QUESTION)) for _ in range(2)]
        await watched.called(before + 1)
        tasks.append(asyncio.create_task(engine.label(MOOD, "好")))
        await asyncio.sleep(0)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
    await closing
    for task in tasks:
        with pytest.raises(EngineClosed):
            await task
    assert len(watched.steps) == before + 1
    assert not engine.alive
    assert not engine._thread.is_alive()


async def test_a_closed_engine_answers_nothing_and_may_be_closed_again(engine: QwenEngine) -> None:
    await engine.close()
    for request in (engine.write(GREEDY, QUESTION), engine.label(MOOD, "好"), engine.check(MOOD)):
        with pytest.raises(EngineClosed):
            await request
    await engine.close()


async def test_a_failure_of_the_model_is_that_requests_alone_and_quotes_nobody(
    engine: QwenEngine, watched: Watched
) -> None:
    def fail(logits: torch.Tensor) -> None:
        raise RuntimeError("the customer said: my secret")

    watched.change = fail
    with pytest.raises(EngineError) as caught:
        await engine.write(GREEDY, QUESTION)
    assert "RuntimeError" in str(caught.value)
    assert "secret" not in str(caught.value)
    watched.change = lambda logits: None
    assert (await engine.write(GREEDY, QUESTION)).text


async def test_who_writes_over_the_model_s_file_is_told_to_restart(random_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(random_model, tmp_path / "model"))
    engine = QwenEngine.load(EngineConfig(), model)
    await engine.write(GREEDY, QUESTION)
    (model / "model.safetensors").write_bytes(b"another model")
    with pytest.raises(EngineError, match=r"model\.safetensors was changed while it was in use: restart frontdesk"):
        await engine.write(GREEDY, QUESTION)
    await engine.close()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_numbers_that_are_not_numbers_are_an_engine_error(
    engine: QwenEngine, watched: Watched, number: float
) -> None:
    def spoil(logits: torch.Tensor) -> None:
        logits[1] = number

    watched.change = watched.change_labels = spoil
    for request in (engine.write(GREEDY, QUESTION), engine.label(MOOD, "好")):
        with pytest.raises(EngineError, match="not numbers"):
            await request


async def test_a_loop_that_ended_midway_does_not_stop_the_engine(engine: QwenEngine, watched: Watched) -> None:
    def abandon() -> None:
        async def start() -> None:
            asyncio.create_task(engine.write(GREEDY, QUESTION, print))  # noqa: RUF006 - left behind on purpose
            await watched.called(1)

        asyncio.run(start())

    async with watched.held():
        await asyncio.to_thread(abandon)
    assert (await engine.write(GREEDY, QUESTION)).text


def test_load_gives_an_engine_for_the_port() -> None:
    shares: list[float] = []
    engine: Engine = QwenEngine.load(EngineConfig(threads=1), bundled.PATH, shares.append)
    assert shares[-1] == 1
    asyncio.run(engine.close())
