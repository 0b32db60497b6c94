"""Long texts are cut where a reader would cut them, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.text import as_command, split, utf16_length
from bot.messages import COMMANDS

MIXED = st.text(st.one_of(st.characters(), st.sampled_from(" \n.!?。，！…\u200d\ufe0f\u0301😀👍\U0001f3fd🇨🇳\ud83d")))
LIMITS = st.integers(2, 40)


def without_space(text: str) -> str:
    return "".join(text.split())


def test_a_text_within_the_limit_stays_whole():
    assert split("good morning", 12) == ["good morning"]


@pytest.mark.parametrize("blank", ["", " ", "\n\n\t "])
def test_a_blank_text_has_no_parts(blank: str):
    assert split(blank, 10) == []


def test_a_paragraph_break_is_preferred_to_a_sentence_end():
    assert split("One two.\n\nThree. Four.", 17) == ["One two.", "Three. Four."]


def test_a_line_break_is_preferred_to_a_sentence_end():
    assert split("One two.\nThree. Four.", 16) == ["One two.", "Three. Four."]


def test_a_sentence_end_is_preferred_to_a_word_end():
    assert split("We open at 9.30 today. Come by any time.", 30) == ["We open at 9.30 today.", "Come by any time."]


def test_a_dot_inside_a_number_ends_no_sentence():
    assert split("it costs 129.99 euros", 14) == ["it costs", "129.99 euros"]


def test_a_closing_quote_stays_with_its_sentence():
    assert split('She said "Stop." Then she left.', 20) == ['She said "Stop."', "Then she left."]


def test_chinese_sentences_end_without_a_space():
    assert split("您好！我们九点开门。欢迎光临。", 12) == ["您好！我们九点开门。", "欢迎光临。"]


def test_a_chinese_closing_quote_stays_with_its_sentence():
    assert split("他说：“不行。”然后就走了。", 8) == ["他说：“不行。”", "然后就走了。"]


def test_a_chinese_sentence_too_long_is_cut_at_a_comma():
    assert split("我们今天九点开门，欢迎大家光临本店选购", 12) == ["我们今天九点开门，", "欢迎大家光临本店选购"]


def test_a_long_word_is_cut_between_characters():
    assert split("a" * 25, 10) == ["a" * 10, "a" * 10, "a" * 5]


def test_an_early_break_does_not_scatter_the_text():
    assert split("Hi.\n\n" + "word " * 6, 20) == ["Hi.\n\nword word word", "word word word"]


def test_a_short_word_before_an_endless_one_stands_alone():
    assert split("see " + "x" * 30, 20) == ["see", "x" * 20, "x" * 10]


@pytest.mark.parametrize("whole", ["👨\u200d👩\u200d👧", "e\u0301\u0302", "👍🏽", "🇨🇳", "❤\ufe0f"])
def test_what_is_drawn_as_one_character_is_not_torn(whole: str):
    parts = split(whole * 20, 16, utf16_length)
    assert len(parts) > 1
    assert all(part == whole * (len(part) // len(whole)) for part in parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("look here: https://shop.example/a,b.c!d?e", ["look here:", "https://shop.example/a,b.c!d?e"]),
        ("请看https://shop.example/long/path。谢谢您！", ["请看", "https://shop.example/long/path", "。谢谢您！"]),
        ("Run this: ```a\n\nb. c```", ["Run this:", "```a\n\nb. c```"]),
    ],
)
def test_a_link_or_a_block_of_code_stays_whole(text: str, parts: list[str]):
    assert split(text, 30 if "https" in text else 16) == parts


def test_a_link_longer_than_a_part_is_cut_all_the_same():
    assert split("https://shop.example/" + "a" * 30, 20) == ["https://shop.example", "/aaaaaaaaaaaaaaaaaaa", "a" * 11]


@given(
    st.lists(
        st.sampled_from(["word. ", "https://a.example/b,c.d ", "```x\n\ny z```", "。", "\n\n", "long" * 9]), max_size=30
    )
)
def test_no_link_and_no_block_of_code_is_ever_torn(pieces: list[str]):
    text = "".join(pieces)
    parts = split(text, 26)
    for whole in ("https://a.example/b,c.d", "```x\n\ny z```"):
        assert sum(part.count(whole) for part in parts) == text.count(whole)


def test_utf16_length_counts_an_emoji_twice_and_a_lone_surrogate_once():
    assert [utf16_length(text) for text in ("a", "汉", "😀", "\ud83d", "")] == [1, 1, 2, 1, 0]


def test_a_text_of_emoji_is_measured_in_utf16_units():
    assert [len(part) for part in split("😀" * 5000, 4096, utf16_length)] == [2048, 2048, 904]


def test_a_character_longer_than_the_limit_is_a_part_of_its_own():
    assert split("😀😀", 1, utf16_length) == ["😀", "😀"]


@given(MIXED, LIMITS)
def test_nothing_is_lost_but_white_space(text: str, limit: int):
    assert without_space("".join(split(text, limit, utf16_length))) == without_space(text)


@given(MIXED, LIMITS)
def test_each_part_fits_and_none_is_empty(text: str, limit: int):
    for part in split(text, limit, utf16_length):
        assert 0 < utf16_length(part) <= limit
        assert part == part.strip()


def test_a_64_kilobyte_text_is_cut_at_once():
    parts = split("字" * 65_536, 4096, utf16_length)
    assert [len(part) for part in parts] == [4096] * 16


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("!help", "help"),
        (" !Human ", "human"),
        ("!language  ZH", "language ZH"),
        ("!help me", ""),
        ("help", ""),
        ("!", ""),
        ("!forge", ""),
        ("what does !help do", ""),
        ("!start " + "x" * 100, "start " + "x" * 64),
    ],
)
def test_a_command_stands_alone_but_for_its_argument(words: str, command: str) -> None:
    assert as_command(words, "!") == command


@given(MIXED, st.sampled_from("!/"))
def test_any_text_is_a_command_or_not(words: str, mark: str) -> None:
    assert as_command(words, mark).partition(" ")[0] in ("", *COMMANDS)
