"""The fixed sentences: every language has them all, and the right language is chosen."""

from __future__ import annotations

import re

import pytest

from bot import catalogue
from bot.catalogue import language_of, languages, say
from bot.conversation import Author, Reason


def fields(sentence: str) -> set[str]:
    return set(re.findall(r"{(\w+)}", sentence))


def test_every_language_has_the_same_keys_and_fields():
    shapes = {
        name: {key: fields(text) for key, text in language.sentences.items()} for name, language in languages().items()
    }
    assert set(shapes) >= {"en", "zh"}
    for shape in shapes.values():
        assert shape == shapes["en"]


def test_no_sentence_is_empty():
    assert all(text.strip() for language in languages().values() for text in language.sentences.values())


@pytest.mark.parametrize("key", [*(f"reason_{each}" for each in Reason), *(f"author_{each}" for each in Author)])
def test_every_reason_and_author_of_a_card_has_words(key: str):
    assert say(key, "en")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_greeting_reads_well_with_and_without_a_name(language: str):
    named, nameless = say("start", language, shop="Lotus"), say("start", language, shop="")
    assert "Lotus" in named
    assert nameless == say("start", language)
    for text in (named, nameless):
        assert not re.search(r"[\[\]{}]|  | [!,.]|，，", text)


def test_what_a_field_holds_is_taken_as_it_is():
    assert "to {key} [x]!" in say("start", "en", shop="{key} [x]")


def test_an_unknown_language_speaks_english():
    assert say("media", "tlh") == say("media", "en")


@pytest.mark.parametrize(
    ("text", "code", "language"),
    [
        ("你好", "en", "zh"),
        ("iPhone 多少钱", "en", "zh"),
        ("hello", "zh-hans", "en"),
        ("👍", "zh-hans", "zh"),
        ("👍", "zh_CN", "zh"),
        ("12:30?", "EN-us", "en"),
        ("👍", "fr", "en"),
        ("Привет", "zh", "zh"),
        ("", "", "en"),
    ],
)
def test_the_messages_own_script_decides_then_the_platforms_code_then_english(text: str, code: str, language: str):
    assert language_of(text, code) == language


def test_a_third_language_is_a_file(tmp_path, monkeypatch: pytest.MonkeyPatch):
    for name, letters in {"de": "[A-Za-z]", "en": "[A-Za-z]", "ru": "[\u0400-\u04ff]"}.items():
        (tmp_path / f"{name}.toml").write_text(
            f'name = "{name}"\nletters = "{letters}"\n[sentences]\nhelp = "{name}!"', encoding="utf-8"
        )
    monkeypatch.setattr(catalogue, "__file__", str(tmp_path / "__init__.py"))
    languages.cache_clear()
    try:
        assert language_of("Guten Tag", "de") == "de"
        assert language_of("Good day", "") == "en"
        assert language_of("Привет, iPhone", "en") == "ru"
        assert say("help", "ru") == "ru!"
    finally:
        languages.cache_clear()
