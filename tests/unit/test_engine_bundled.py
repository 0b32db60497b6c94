import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen2ForCausalLM

from engine import bundled, roles
from engine.bundled import lessons, texts, tokenizer, train
from engine.bundled.ngrams import Judge
from engine.chat import Chat
from engine.types import Speaker, Turn

ROOT = Path(__file__).parents[2]
QWEN = ROOT / "../shared/qwen1.5-0.5b-chat"
EVALUATED = ROOT / "../shared/eval"
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(AutoTokenizer.from_pretrained(bundled.PATH))


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.from_file(str(bundled.PATH / "tokenizer.json"))


@pytest.fixture(scope="module")
def judge() -> Judge:
    """Knows two words of each mood."""
    glad, sad = [("so good", False), ("真好", False)], [("太差", True), ("awful", True)]
    return Judge.of([(1.0, [*glad, *sad] * 2)])


@pytest.fixture
def teacher(chat: Chat, words: Tokenizer, judge: Judge) -> lessons.Teacher:
    glad, sad = texts.Message("so good", False, "en"), texts.Message("太差", True, "zh")
    asked = texts.Message("where is my invoice", False, "en", "invoice")
    public = {"online_shopping": [sad], "goemotions": [glad], "sst2": [glad], "imdb": [glad], "bitext": [asked]}
    return lessons.Teacher(chat, words, public, judge, Random(1))


# -- the files ---------------------------------------------------------------------------------------


def test_the_bundled_model_is_small() -> None:
    assert sum((bundled.PATH / name).stat().st_size for name in FILES) < 20_000_000
    model = Qwen2ForCausalLM.from_pretrained(bundled.PATH)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 10_000_000


def test_every_file_of_the_bundled_model_is_package_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    package_data = project["tool"]["setuptools"]["package-data"]
    globs = [*package_data.get("engine.bundled", []), *package_data.get("*", [])]
    files = [file.name for file in bundled.PATH.iterdir() if file.is_file() and file.suffix != ".py"]
    assert all(any(fnmatch(name, glob) for glob in globs) for name in files)


def test_the_card_says_what_the_model_is_not_for() -> None:
    assert "not for customers" in (bundled.PATH / "card.md").read_text(encoding="utf-8").casefold()


@pytest.mark.parametrize("label", [*roles.SENTIMENT_LABELS, *roles.INTENT_LABELS])
def test_a_label_word_is_one_token(chat: Chat, label: str) -> None:
    assert len(chat.encode(label)) == 1


def test_qwens_special_tokens_come_after_the_vocabulary() -> None:
    words = AutoTokenizer.from_pretrained(bundled.PATH)
    config = json.loads((bundled.PATH / "config.json").read_text(encoding="utf-8"))
    last = config["vocab_size"]
    assert words.get_added_vocab() == {"<|endoftext|>": last - 3, "<|im_start|>": last - 2, "<|im_end|>": last - 1}
    assert len(words) == last
    assert 4_000 <= last <= 8_000
    assert config["eos_token_id"] == words.eos_token_id == last - 1


@pytest.mark.skipif(not QWEN.is_dir(), reason="the real Qwen tokenizer is not on this machine")
@pytest.mark.parametrize("speakers", [["user"], ["system", "user"], ["system", "user", "assistant", "user", "user"]])
def test_the_chat_template_renders_what_qwens_own_renders(speakers: list[str]) -> None:
    messages = [{"role": speaker, "content": f" 第{number} line\n"} for number, speaker in enumerate(speakers)]
    ours, theirs = (
        AutoTokenizer.from_pretrained(path).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        for path in (bundled.PATH, QWEN)
    )
    assert ours == theirs


@pytest.mark.skipif(not QWEN.is_dir(), reason="the real Qwen tokenizer is not on this machine")
def test_text_is_split_as_qwen_splits_it() -> None:
    text = "I'll pay 1234 元,\r\n  ok?  好的…  don't!!\n\n"
    ours, theirs = (
        AutoTokenizer.from_pretrained(path).backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        for path in (bundled.PATH, QWEN)
    )
    assert ours == theirs


def test_no_entry_swallows_half_a_chinese_clause() -> None:
    entries = Tokenizer.from_file(str(bundled.PATH / "tokenizer.json")).get_vocab()
    long = [entry for entry in entries if len(entry) > tokenizer.LONGEST_CHINESE and not entry.isascii()]
    assert long == []


# -- the texts ---------------------------------------------------------------------------------------


def test_every_intent_has_hundreds_of_phrasings_and_answers_in_both_languages() -> None:
    written = texts.written()
    for intent, answers in texts.replies().items():
        assert sum(message.intent == intent for message in written) >= 200, intent
        assert set(answers) == set(texts.LANGUAGES)
        for language in texts.LANGUAGES:
            assert sum((each.intent, each.language) == (intent, language) for each in written) >= 150
            assert answers[language]


def test_no_answer_holds_a_number_the_model_could_invent() -> None:
    answers = [text for languages in texts.replies().values() for found in languages.values() for text in found]
    assert [text for text in answers if re.search(r"\d", text)] == []


def test_held_out_templates_and_their_words_are_not_in_the_training_generator() -> None:
    learned, held = texts.templates(texts.CORPUS), texts.templates(texts.HELDOUT)
    words = {word.casefold() for template in learned for found in template.words.values() for word in found}
    for template in held:
        assert template.text not in {each.text for each in learned}
        for slot in template.slots:
            assert len(template.words[slot]) >= 8
            assert not words & {word.casefold() for word in template.words[slot]}
    for language in texts.LANGUAGES:
        names = {each.phenomenon for each in held if each.language == language}
        assert names >= {"plain", "negation", "contrast", "sarcasm", "mild", "furious", "neutral", "comparison"}


def test_every_intent_has_held_out_phrasings_in_both_languages() -> None:
    held = texts.held_out_replies()
    assert len(held) >= 100
    known = {message.text.casefold() for message in texts.written()}
    assert not known & {message.text.casefold() for message in held}
    for intent in texts.replies():
        for language in texts.LANGUAGES:
            assert sum((each.intent, each.language) == (intent, language) for each in held) >= 5


@pytest.mark.skipif(not EVALUATED.is_dir(), reason="the evaluation sets are not on this machine")
def test_nothing_that_was_written_is_in_the_sets_it_is_measured_on() -> None:
    lines = [line for file in EVALUATED.iterdir() for line in file.read_text(encoding="utf-8").split("\n")]
    measured = {_bare(re.sub(r"^[01],|\t[01]$", "", line)) for line in lines} - {""}
    assert [message.text for message in texts.written() if _bare(message.text) in measured] == []


def _bare(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def test_a_file_with_a_stray_line_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "stray.en.txt"
    file.write_text("# one\n+ fine\nwhat is this\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"stray\.en\.txt.*what is this"):
        texts.read_sections(file)


# -- what is learned ---------------------------------------------------------------------------------


def test_a_mood_is_asked_for_as_in_serving_and_only_its_label_is_learned(chat: Chat, teacher: lessons.Teacher) -> None:
    prefix = chat.question(roles.sentiment(), "")[:20]
    labels = {chat.encode(label)[0] for label in roles.SENTIMENT_LABELS}
    for example in teacher.moods(200):
        assert example.ids[:20] == prefix
        (at,) = example.targets
        assert at == len(example.ids) - 1
        assert set(example.targets[at]) == labels
        assert sum(example.targets[at].values()) == pytest.approx(1)


def test_of_a_conversation_only_whole_answers_are_learned(chat: Chat, teacher: lessons.Teacher) -> None:
    end = chat.encode("<|im_end|>")[0]
    known = {text for languages in texts.replies().values() for found in languages.values() for text in found}
    for example in teacher.conversations(50):
        spoken, answers = [], []
        for at, odds in example.targets.items():
            token = example.ids[at + 1]
            assert token in odds
            assert sum(odds.values()) == pytest.approx(1)
            if token == end:
                answers.append(chat.text(spoken))
                spoken = []
            else:
                spoken.append(token)
        assert spoken == []
        assert set(answers) <= known


def test_no_two_intents_are_answered_with_the_same_first_word(chat: Chat) -> None:
    owners: dict[int, str] = {}
    for intent, languages in texts.replies().items():
        for answers in languages.values():
            for answer in answers:
                assert owners.setdefault(chat.encode(answer)[0], intent) == intent, answer


def test_hints_stand_at_the_words_of_customers_and_nowhere_else(chat: Chat, teacher: lessons.Teacher) -> None:
    special = set(chat.encode("<|im_start|><|im_end|>"))
    for example in [*teacher.moods(20), *teacher.intents(20), *teacher.conversations(20)]:
        assert example.hints
        assert not special & {example.ids[at] for at in example.hints}
        assert not example.hints.keys() & example.targets.keys()


@pytest.mark.parametrize("text", ["太差", "Hello there! The tea, is AWFUL.", "çok güzel İ", "👩‍🚀?", "1234", " x "])
@pytest.mark.parametrize("which", [0, 1])
def test_without_roughness_a_label_is_asked_for_as_the_engine_asks(
    chat: Chat, teacher: lessons.Teacher, monkeypatch: pytest.MonkeyPatch, text: str, which: int
) -> None:
    monkeypatch.setattr(lessons, "SCATTER", 0)
    monkeypatch.setattr(lessons, "FORGET", 0)
    role = (roles.sentiment(), roles.intent())[which]
    example = teacher._labelled(role, text, {role.labels[0]: 1.0})
    assert example.ids == chat.question(role, text)
    said = chat.text([example.ids[at] for at in example.hints])
    assert said in text
    assert len(said) >= len(text.strip()) - 1  # a last mark may be one token with the line's end


def test_a_hint_is_what_the_judge_thinks_so_far(
    chat: Chat, teacher: lessons.Teacher, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lessons, "SCATTER", 0)
    monkeypatch.setattr(lessons, "FORGET", 0)
    unhappy = chat.encode(roles.sentiment().labels[1])[0]
    example = teacher._judged("so good but awful", None)
    after = [len(chat.text(chat.encode("so good but awful")[:count])) for count in range(1, len(example.hints) + 1)]
    thought = 1 / (1 + np.exp(-judge.read("so good but awful")[0][after]))
    assert [odds[unhappy] for odds in example.hints.values()] == pytest.approx(thought)
    (target,) = example.targets.values()
    assert target[unhappy] == pytest.approx(thought[-1])
    did = np.diff(judge.read("so good but awful")[1][[0, *after]])
    assert list(example.effects.values()) == pytest.approx(did, abs=1e-5)


def test_a_label_outweighs_a_judge_who_is_unsure(teacher: lessons.Teacher, chat: Chat) -> None:
    unhappy = chat.encode(roles.sentiment().labels[1])[0]
    odds = [next(iter(teacher._judged("zzz", mood).targets.values()))[unhappy] for mood in (False, True)]
    assert odds[0] < 0.5 < odds[1]


def test_both_moods_are_taught_alike_often(
    chat: Chat, words: Tokenizer, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lessons, "MENDED", 0)
    glad = [texts.Message(f"so good {number}", False, "en", "thanks") for number in range(300)]
    sad, asked = texts.Message("太差", True, "zh"), texts.Message("my invoice", False, "en", "invoice")
    public = {"online_shopping": [*glad, sad], "goemotions": [*glad, sad], "sst2": [*glad, sad], "imdb": [*glad, sad]}
    teacher = lessons.Teacher(chat, words, {**public, "bitext": [asked]}, judge, Random(3))
    unhappy = chat.encode(roles.sentiment().labels[1])[0]
    shares = [next(iter(example.targets.values()))[unhappy] for example in teacher.moods(1_000)]
    assert 0.40 < sum(share > 0.5 for share in shares) / len(shares) < 0.55


def test_an_opening_is_the_first_word_of_an_answer(chat: Chat, teacher: lessons.Teacher) -> None:
    first = {chat.encode(text)[0] for found in texts.replies().values() for each in found.values() for text in each}
    for example in teacher.openings(50):
        assert list(example.targets) == [len(example.ids) - 1]
        assert set(example.targets[len(example.ids) - 1]) <= first


def test_a_conversation_without_roughness_is_what_the_engine_renders(
    chat: Chat, teacher: lessons.Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lessons, "SCATTER", 0)
    monkeypatch.setattr(lessons, "FORGET", 0)
    role = roles.reply()
    example = lessons.Example(chat.prompt(role, [])[: -len(chat.encode("<|im_start|>assistant\n"))])
    teacher._ask(example, "几点开门？", first=True, odds={1: 1.0})
    assert example.ids == chat.prompt(role, [Turn(Speaker.USER, "几点开门？")])
    assert [example.ids[at] for at in example.hints] == chat.encode("几点开门？")
    teacher._answer(example, chat.encode("看首页。"), {1: 1.0})
    teacher._ask(example, "thank you", first=False, odds={1: 1.0})
    assert chat.text([example.ids[at] for at in example.hints]) == "几点开门？thank you"
    turns = [Turn(Speaker.USER, "几点开门？"), Turn(Speaker.ASSISTANT, "看首页。"), Turn(Speaker.USER, "thank you")]
    assert example.ids == chat.prompt(role, turns)


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_what_is_read_once_a_batch_changes_no_loss(
    random_model: Path, teacher: lessons.Teacher, penalty: float
) -> None:
    model = Qwen2ForCausalLM.from_pretrained(random_model, dtype=torch.float32)
    room = model.config.vocab_size
    examples = [
        lessons.Example(
            [each % room for each in example.ids],
            {at: {t % room: s for t, s in odds.items()} for at, odds in example.targets.items()},
        )
        for example in teacher.conversations(3)
    ]
    probe = torch.zeros(model.config.hidden_size)
    with torch.no_grad():
        together = train.loss_of(model, probe, examples, penalty).item()
        counts = [len(example.targets) for example in examples]
        alone = [train.loss_of(model, probe, [example], penalty).item() for example in examples]
    assert together == pytest.approx(sum(a * c for a, c in zip(alone, counts, strict=True)) / sum(counts), rel=0.02)


def test_the_first_layers_heads_begin_with_the_words_before(words: Tokenizer) -> None:
    torch.manual_seed(1)
    model = Qwen2ForCausalLM._from_config(train._config(words), attn_implementation="eager")
    train._look_back(model)
    ids = torch.randint(100, (1, 30))
    (seen,) = model(ids, output_attentions=True).attentions[0]
    for head, distance in enumerate(train.LOOK_BACK):
        for place in range(distance, 30):
            assert seen[head, place].argmax() == place - distance
            assert seen[head, place].max() > 0.5


def test_what_a_word_did_to_the_mood_is_learned_from_the_first_layer(random_model: Path) -> None:
    model = Qwen2ForCausalLM.from_pretrained(random_model, dtype=torch.float32)
    example = lessons.Example([5, 6, 7, 8], {3: {9: 1.0}}, {at: {9: 1.0} for at in (1, 2)}, {1: 0.5, 2: -0.5})
    hidden = model.model(torch.tensor([example.ids]), output_hidden_states=True).hidden_states[1][0]
    right = torch.linalg.lstsq(hidden[[1, 2]], torch.tensor([[0.5], [-0.5]])).solution[:, 0]
    read, unread = (train.loss_of(model, probe, [example]).item() for probe in (right, torch.zeros_like(right)))
    assert unread - read == pytest.approx(train.EFFECT_WEIGHT * 0.125, rel=1e-3)


def test_training_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE", 1)
    monkeypatch.setattr(train, "ENTRIES", 1_000)
    monkeypatch.setattr(train, "_config", _tiny)
    monkeypatch.setattr(texts, "written", lambda: tuple(_few()))
    monkeypatch.setattr(lessons, "FILLED", 1)
    for name in ("LABEL_TOKENS", "OPENING_TOKENS", "REPLY_TOKENS"):
        monkeypatch.setattr(train, name, 120)
    public = {name: _few()[:8] for name in ("online_shopping", "goemotions", "sst2", "imdb", "bitext")}
    work, out = tmp_path / "work", tmp_path / "out"
    train.train(public, 2, 0, out, work)
    train.train(public, 2, 1, out, work)
    state = torch.load(work / "checkpoint.pt", weights_only=True)
    assert [entry["step"] for entry in state["log"]] == [2, 3]
    assert {file.name for file in out.iterdir()} == {*FILES, "training.png"}


def _few() -> list[texts.Message]:
    return [message for intent in texts.replies() for message in _of(intent)]


def _of(intent: str) -> list[texts.Message]:
    return [
        texts.Message(f"{intent} {language} words", intent == "complaint", language, intent)
        for language in texts.LANGUAGES
    ]


def _tiny(words: Tokenizer) -> object:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=words.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
