"""What the bundled model is taught and tested with: the sentences written here, and the public sets that lie elsewhere.

corpus/ is learned from, heldout/ only measured on. A *.txt holds one message a line under `# section` headings, with
its mood in front: "- " for an unhappy customer, "+ " for any other. A *.toml holds templates and word lists.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from engine.bundled import PATH

CORPUS, HELDOUT = PATH / "corpus", PATH / "heldout"
LANGUAGES = ("zh", "en")
MAX_CHARS = {"zh": 90, "en": 220}
"""Longer reviews of the public sets are left out: they cost much time and say the same at greater length."""

INTENT_LABEL = {"order": "订单", "delivery": "物流", "refund": "退款", "invoice": "发票", "price": "价格"}
"""What the intent role answers; every other intent is 其他."""
OTHER = "其他"

_PRAISED, _CRITICISED = "thanks", "complaint"
_UNANSWERED = ("neutral", "factual-positive")
"""Sections of the mood files without an intent of their own."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a customer wrote, whether a fair reader finds it unhappy, and what it wants ("" where that is unknown)."""

    text: str
    negative: bool
    language: str
    intent: str = ""


# -- written here ----------------------------------------------------------------------------------


def read_sections(file: Path) -> dict[str, list[Message]]:
    """The messages of a *.txt by section; their intent is the section's name."""
    language = file.stem.rpartition(".")[2]
    sections: dict[str, list[Message]] = {}
    name = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        mark, _, text = line.partition(" ")
        if mark == "#":
            name = text.strip()
        elif mark in ("+", "-") and text.strip():
            sections.setdefault(name, []).append(Message(text.strip(), mark == "-", language, name))
        elif line.strip():
            raise ValueError(f"{file}: neither a heading nor a message: {line!r}")
    return sections


@cache
def written() -> tuple[Message, ...]:
    """Every message of corpus/*.txt. Praise is answered as thanks, criticism as a complaint."""
    intents = list(_messages(CORPUS, "intents*"))
    moods = [
        Message(message.text, message.negative, message.language, _intent_of_mood(message))
        for message in _messages(CORPUS, "mood*")
    ]
    return tuple(dict.fromkeys([*intents, *moods]))


@cache
def turned() -> frozenset[str]:
    """The messages of corpus/*.txt in which a word turns the others' meaning: negations, contrasts and comparisons."""
    files = sorted(CORPUS.glob("mood*.txt"))
    return frozenset(
        message.text
        for file in files
        for section, messages in read_sections(file).items()
        if section.startswith(("negation", "contrast", "comparison"))
        for message in messages
    )


@cache
def asked() -> frozenset[str]:
    """The messages of corpus/intents*.txt, which want something; those of the mood files praise or criticise."""
    return frozenset(message.text for message in _messages(CORPUS, "intents*"))


def held_out_replies() -> list[Message]:
    """The phrasings that replies are measured on, without those that the corpus happens to hold too."""
    known = {_bare(message.text) for message in written()}
    return [message for message in _messages(HELDOUT, "replies") if _bare(message.text) not in known]


def _bare(text: str) -> str:
    """Letters and figures alone; of a text without any, the text."""
    return re.sub(r"[\W_]+", "", text).casefold() or text


def _messages(folder: Path, stem: str) -> Iterator[Message]:
    for file in sorted(folder.glob(f"{stem}.*.txt")):
        for messages in read_sections(file).values():
            yield from messages


def _intent_of_mood(message: Message) -> str:
    if message.intent in _UNANSWERED:
        return ""
    return _CRITICISED if message.negative else _PRAISED


@cache
def replies() -> Mapping[str, Mapping[str, Sequence[str]]]:
    """The answers, by intent and language."""
    found: dict[str, dict[str, list[str]]] = tomllib.loads((PATH / "replies.toml").read_text(encoding="utf-8"))
    return found


# -- generated -------------------------------------------------------------------------------------


_SLOT = re.compile(r"{(\w+)}")


@dataclass(frozen=True, slots=True)
class Template:
    """A sentence with {slots} for words."""

    name: str
    phenomenon: str
    negative: bool
    language: str
    text: str
    words: Mapping[str, Sequence[str]]

    @property
    def slots(self) -> list[str]:
        """The names of the word lists it draws from."""
        return _SLOT.findall(self.text)

    def fill(self, random: Random) -> Message:
        """The sentence with words drawn at random; the same slot twice gets two draws."""
        text = _SLOT.sub(lambda slot: random.choice(self.words[slot[1]]), self.text)
        if self.language == "en":
            text = text[0].upper() + text[1:]
        return Message(text, self.negative, self.language)


@cache
def templates(folder: Path) -> tuple[Template, ...]:
    """The templates of a folder's mood.*.toml."""
    found = []
    for file in sorted(folder.glob("mood.*.toml")):
        document: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        language = file.stem.rpartition(".")[2]
        for each in document["template"]:
            negative = each["label"] == "-"
            found.append(
                Template(each["name"], each["phenomenon"], negative, language, each["text"], document["words"])
            )
    return tuple(found)


def vary(message: Message, random: Random) -> Message:
    """The same message as another hand might type it: case, closing marks, numbers, a greeting before it."""
    text = re.sub(r"\d", lambda digit: str(random.randrange(10)), message.text)
    if random.random() < 0.25:
        text = text.lower()
    if random.random() < 0.3:
        text = text.rstrip(".。!！~～ ")
    elif random.random() < 0.1 and text[-1] in "!！。.":
        text += text[-1] * random.randint(1, 2)
    if random.random() < 0.08 and message.intent not in ("greeting", "smalltalk", "fallback"):
        text = random.choice(_OPENINGS[message.language]) + text
    return Message(text or message.text, message.negative, message.language, message.intent)


_OPENINGS = {
    "zh": ("你好，", "您好，", "请问", "亲，", "在吗，", "老板，", "客服你好，", "那个，", "我想问下，"),
    "en": ("hi, ", "Hello, ", "hey, ", "Good morning, ", "Hi there! ", "excuse me, ", "Quick question: "),
}


# -- public sets, which are not part of frontdesk ---------------------------------------------------

_GLAD = {"admiration", "approval", "caring", "excitement", "gratitude", "joy", "love", "optimism", "pride", "relief"}
_SAD = {"anger", "annoyance", "disappointment", "disapproval", "disgust", "grief", "remorse", "sadness"}
_BITEXT = {
    **dict.fromkeys(("cancel_order", "change_order", "track_order", "place_order"), "order"),
    **dict.fromkeys(("delivery_options", "delivery_period"), "delivery"),
    **dict.fromkeys(("get_refund", "track_refund", "check_refund_policy"), "refund"),
    **dict.fromkeys(("check_invoice", "get_invoice"), "invoice"),
    **dict.fromkeys(("edit_account", "switch_account", "create_account", "delete_account"), "account"),
    **dict.fromkeys(("recover_password", "newsletter_subscription"), "account"),
}
"""Intents of that set that ours answer to; its others are left out."""


def public(folder: Path) -> dict[str, list[Message]]:
    """The labelled public sets in `folder`, by name: moods, and for one of them intents. Files as published."""
    return {
        "online_shopping": list(_online_shopping(folder / "online_shopping_9_cats.csv")),
        "goemotions": list(_goemotions(folder)),
        "sst2": list(_tabbed(folder / "sst2_train.tsv")),
        "imdb": list(_tabbed(folder / "imdb_labelled.txt")),
        "bitext": list(_bitext(folder / "bitext_intents_train.csv")),
    }


def _online_shopping(file: Path) -> Iterator[Message]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for row in csv.DictReader(lines):
            text = " ".join(row["review"].replace("\ufeff", "").split())
            if 0 < len(text) <= MAX_CHARS["zh"]:
                yield Message(text, row["label"] == "0", "zh")


def _goemotions(folder: Path) -> Iterator[Message]:
    """Comments whose emotions are all glad or all sad; the others say nothing about a customer's mood."""
    names = (folder / "goemotions_labels.txt").read_text(encoding="utf-8").split()
    for line in _lines(folder / "goemotions_train.tsv"):
        text, labels, _ = line.split("\t")
        emotions = {names[int(label)] for label in labels.split(",")}
        if (emotions <= _GLAD or emotions <= _SAD) and len(text) <= MAX_CHARS["en"]:
            yield Message(text.strip(), emotions <= _SAD, "en")


def _tabbed(file: Path) -> Iterator[Message]:
    for line in _lines(file):
        text, _, label = line.rpartition("\t")
        if text.strip() and len(text) <= MAX_CHARS["en"]:
            yield Message(text.strip(), label.strip() == "0", "en")


def _lines(file: Path) -> list[str]:
    """Not splitlines(): it also breaks at characters that a text may hold."""
    return file.read_text(encoding="utf-8").rstrip("\n").split("\n")


def _bitext(file: Path) -> Iterator[Message]:
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            intent = _BITEXT.get(row["intent"] or "")
            if intent:
                yield Message(row["utterance"].strip(), False, "en", intent)
