"""The fixed sentences, one file per language: a new language is a new file here.

A file holds `name`, as its speakers call the language, `letters`, a regular expression of the letters that give it
away, and `[sentences]`. `{name}` is a field; a part in [square brackets] is left out when a field in it is empty.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

DEFAULT = "en"


@dataclass(frozen=True, slots=True)
class Language:
    """One file: its name, the letters it is recognised by, and its sentences by key."""

    name: str
    letters: re.Pattern[str]
    sentences: dict[str, str]

    @property
    def is_latin(self) -> bool:
        return self.letters.search("e") is not None


@cache
def languages() -> dict[str, Language]:
    """Every language of the catalogue, by its two-letter code."""
    return {file.stem: _read(file) for file in sorted(Path(__file__).parent.glob("*.toml"))}


def say(key: str, language: str, **fields: object) -> str:
    """The sentence `key` in `language`, English where there is no such language. Fields it does not use are ignored."""
    template = languages().get(language, languages()[DEFAULT]).sentences[key]
    return re.sub(r"\[([^]]*)\]", lambda part: _kept(part[1], fields), template).format(**fields)


def say_when(time: datetime, now: datetime, language: str) -> str:
    """A moment to come, in its own time zone, as people say it."""
    days, clock = (time.date() - now.astimezone(time.tzinfo).date()).days, f"{time:%H:%M}"
    if days < 2:
        return say("when_tomorrow" if days else "when_today", language, time=clock)
    if days < 7:
        return say("when_weekday", language, weekday=say(f"weekday_{time.weekday()}", language), time=clock)
    return say("when_date", language, date=f"{time:%Y-%m-%d}", time=clock)


def language_of(text: str, code: str) -> str:
    """The language to answer in: by the letters of `text`, else by the platform's `code` ("zh-hans"), else English.

    Any letter of another script outweighs Latin ones ("iPhone 多少钱" is Chinese); `code` decides between languages
    that share their letters.
    """
    known = languages()
    written = [name for name, language in known.items() if language.letters.search(text)]
    candidates = [name for name in written if not known[name].is_latin] or written or list(known)
    preferred = re.split("[-_]", code.lower())[0]
    return next((name for name in (preferred, DEFAULT) if name in candidates), candidates[0])


def _read(file: Path) -> Language:
    document = tomllib.loads(file.read_text(encoding="utf-8"))
    return Language(document["name"], re.compile(document["letters"]), document["sentences"])


def _kept(part: str, fields: dict[str, object]) -> str:
    names = re.findall(r"{(\w+)}", part)
    return part if all(fields.get(name) for name in names) else ""
