"""The engine on random weights: what it says equals what transformers says, and its thread keeps its promises."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from bot.errors import ConfigError, DeadlineExceeded, EngineClosed, EngineError
from engine import bundled, roles
from engine.chat import Chat
from engine.model import read
from engine.qwen import CONTENT_FREE, MESSAGE_ROOM, QwenEngine
from engine.types import Engine, EngineConfig, LabelRole, Speaker, StopReason, TextRole, Turn

GREEDY = TextRole("reply", "You work in a shop.", temperature=0.0, repetition_penalty=1.0, max_new_tokens=40)
MOOD = LabelRole("mood", "Say 正面 or 负面.", "{text}", ("正面", "负面"))
QUESTION = [Turn(Speaker.USER, "你好，我的快递什么时候到？")]
TALK = [*QUESTION, Turn(Speaker.ASSISTANT, "今天下午。"), Turn(Speaker.USER, "and the invoice?")]


class Watched:
    """The model, with every call noted, and held up, falsified or slowed where a test wants it.

    `change` gets the logits (vocabulary,) of the last token of each call's first prompt.
    """

    def __init__(self, model: Qwen2ForCausalLM) -> None:
        self.model = model
        self.config, self.generation_config = model.config, model.generation_config
        self.calls: list[tuple[list[int], Any]] = []
        self.widths: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.change: Callable[[torch.Tensor], object] = lambda logits: None

    def __call__(self, input_ids: torch.Tensor, past_key_values: Any, **options: Any) -> Any:
        self.calls.append((input_ids[0].tolist(), past_key_values))
        assert self.gate.wait(10)
        logits = self.model(input_ids=input_ids, past_key_values=past_key_values, **options).logits.clone()
        self.change(logits[0, -1])
        self.widths.append(len(input_ids))
        return SimpleNamespace(logits=logits)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the model from its next call to the end of the block."""
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()

    async def called(self, times: int) -> None:
        async with asyncio.timeout(10):
            while len(self.calls) < times:  # noqa: ASYNC110 - the calls are made on another thread
                await asyncio.sleep(0.001)

    def replies(self) -> list[Any]:
        """Whose turn each call was: the cache of the reply, None for a label."""
        return [cache for _, cache in self.calls]


@pytest.fixture(scope="module")
def parts(random_model: Path) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase]:
    return read(random_model, lambda share: None)


@pytest.fixture(scope="module")
def model(parts: tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase]) -> Qwen2ForCausalLM:
    return parts[0]


@pytest.fixture(scope="module")
def tokenizer(parts: tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return parts[1]


@pytest.fixture(scope="module")
def chat(tokenizer: PreTrainedTokenizerBase) -> Chat:
    return Chat(tokenizer)


@pytest.fixture
def watched(model: Qwen2ForCausalLM) -> Watched:
    return Watched(model)


Make = Callable[..., QwenEngine]


@pytest.fixture
def make(watched: Watched, tokenizer: PreTrainedTokenizerBase) -> Iterator[Make]:
    """Engines on the watched model, one thread of torch each; closed when the test ends."""
    made: list[QwenEngine] = []

    def build(**config: Any) -> QwenEngine:
        engine = QwenEngine(watched, tokenizer, EngineConfig(threads=1, **config))  # type: ignore[arg-type]
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
    fed = [tokens for tokens, _ in watched.calls]
    assert fed[0] == chat.prompt(role, turns)
    assert fed[1:] == [[token] for token in expected[: len(fed) - 1]]
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


async def test_a_label_is_one_forward_pass_once_the_prior_is_known(engine: QwenEngine, watched: Watched) -> None:
    await engine.check(MOOD)
    assert watched.widths == [len(CONTENT_FREE)]
    await engine.label(MOOD, "好")
    await engine.label(MOOD, "不好")
    assert watched.widths == [len(CONTENT_FREE), 1, 1]


async def test_labels_that_wait_together_are_one_forward_pass_and_score_as_alone(
    engine: QwenEngine, watched: Watched
) -> None:
    texts = ["好", "不好", "发货很快，但是东西是坏的", "what a pity", "x" * 30]
    alone = [await engine.label(MOOD, text) for text in texts]
    watched.widths.clear()
    async with watched.held():
        first = asyncio.create_task(engine.label(MOOD, "first"))
        await watched.called(len(watched.calls) + 1)
        tasks = [asyncio.create_task(engine.label(MOOD, text)) for text in texts]
        await asyncio.sleep(0.01)
    together = [await task for task in tasks]
    await first
    assert watched.widths == [1, len(texts)]
    for one, other in zip(alone, together, strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)


async def test_a_label_that_fails_fails_alone_also_where_it_was_scored_with_others(
    engine: QwenEngine, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.check(MOOD)
    question = engine._chat.question
    monkeypatch.setattr(
        engine._chat, "question", lambda role, text: question(role, text) if text != "poison" else 1 / 0
    )
    async with watched.held():
        first = asyncio.create_task(engine.label(MOOD, "first"))
        await watched.called(len(watched.calls) + 1)
        tasks = [asyncio.create_task(engine.label(MOOD, text)) for text in ("好", "poison", "不好")]
        await asyncio.sleep(0.01)
    outcomes = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert [isinstance(outcome, EngineError) for outcome in outcomes] == [False, False, True, False]


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
    async with watched.held():
        first = asyncio.create_task(engine.write(GREEDY, QUESTION))
        await watched.called(2)
        late = [asyncio.create_task(engine.label(MOOD, "好")), asyncio.create_task(engine.write(GREEDY, QUESTION))]
        await asyncio.sleep(0.6)
    for task in late:
        with pytest.raises(DeadlineExceeded):
            await task
    assert (await first).tokens == 1
    assert len(watched.calls) == 2


# -- the window ------------------------------------------------------------------------------------


async def test_a_long_history_loses_its_oldest_turns(make: Make, watched: Watched, chat: Chat) -> None:
    turns = [Turn(speaker, f"turn {number} 的消息") for number in range(30) for speaker in Speaker]
    turns.append(Turn(Speaker.USER, "the newest"))
    await make(context_tokens=200).write(GREEDY, turns)
    prompt = watched.calls[0][0]
    kept = next(start for start in range(len(turns)) if chat.prompt(GREEDY, turns[start:]) == prompt)
    assert 200 - 2 * len(chat.encode("user turn 10 的消息")) - 20 < len(prompt) <= 200
    assert 0 < kept < len(turns) - 1
    assert turns[kept].speaker is Speaker.USER


async def test_a_message_beyond_the_window_keeps_its_head_and_tail(
    make: Make, watched: Watched, tokenizer: Any
) -> None:
    long = "HEAD " + "很长的消息。" * 500 + " TAIL"
    engine = make(context_tokens=150)
    await engine.check(MOOD)
    await engine.write(GREEDY, [Turn(Speaker.USER, long)])
    await engine.label(MOOD, long)
    for prompt in (watched.calls[1][0], watched.calls[-1][0]):
        assert 140 <= len(prompt) <= 150
        assert "HEAD" in tokenizer.decode(prompt)
        assert "TAIL" in tokenizer.decode(prompt)


async def test_prompt_and_reply_stay_within_the_models_positions(make: Make, watched: Watched, model: Any) -> None:
    positions = model.config.max_position_embeddings
    role = TextRole("reply", "", max_new_tokens=positions - 100)
    watched.change = scripted([model.config.eos_token_id])
    await make(context_tokens=32_000).write(role, [Turn(Speaker.USER, "长" * 5000)])
    assert len(watched.calls[0][0]) <= 100


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


async def test_a_label_overtakes_running_replies_and_replies_take_turns(engine: QwenEngine, watched: Watched) -> None:
    await engine.check(MOOD)
    watched.calls.clear()
    async with watched.held():
        first = asyncio.create_task(engine.write(GREEDY, QUESTION))
        await watched.called(1)
        second = asyncio.create_task(engine.write(GREEDY, TALK))
        label = asyncio.create_task(engine.label(MOOD, "好"))
        await asyncio.sleep(0)
    await asyncio.gather(first, second, label)
    order = watched.replies()
    a, b = order[0], next(cache for cache in order if cache not in (order[0], None))
    assert order[1] is None
    assert order[2:10] == [a, b] * 4
    assert order.count(a) == order.count(b) == 40


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


async def test_cancelling_the_caller_stops_its_reply_at_the_next_token(engine: QwenEngine, watched: Watched) -> None:
    seen: list[str] = []
    async with watched.held():
        task = asyncio.create_task(engine.write(GREEDY, QUESTION, seen.append))
        await watched.called(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await engine.write(GREEDY, QUESTION)  # in turns with the cancelled one, were it still there
    assert watched.replies().count(watched.replies()[0]) == 1
    assert seen == []


async def test_closing_ends_everything_in_flight_and_the_thread(engine: QwenEngine, watched: Watched) -> None:
    assert engine.alive
    async with watched.held():
        tasks = [asyncio.create_task(engine.write(GREEDY, QUESTION)) for _ in range(2)]
        await watched.called(1)
        tasks.append(asyncio.create_task(engine.label(MOOD, "好")))
        await asyncio.sleep(0)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
    await closing
    for task in tasks:
        with pytest.raises(EngineClosed):
            await task
    assert len(watched.calls) == 1
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
        watched.change = lambda logits: None
        raise RuntimeError("the customer said: my secret")

    watched.change = fail
    outcomes = await asyncio.gather(
        engine.write(GREEDY, QUESTION), engine.write(GREEDY, QUESTION), return_exceptions=True
    )
    assert isinstance(outcomes[0], EngineError)
    assert "RuntimeError" in str(outcomes[0])
    assert "secret" not in str(outcomes[0])
    assert not isinstance(outcomes[1], BaseException)
    assert (await engine.write(GREEDY, QUESTION)).text == outcomes[1].text


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_numbers_that_are_not_numbers_are_an_engine_error(
    engine: QwenEngine, watched: Watched, number: float
) -> None:
    def spoil(logits: torch.Tensor) -> None:
        logits[7] = number

    watched.change = spoil
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
