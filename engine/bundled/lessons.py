"""The examples that the bundled model learns from, made without end from everything there is to learn.

Prompts are rendered by engine.chat from engine.roles, as in serving, so that training and serving cannot drift apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from tokenizers import Tokenizer

from engine import roles
from engine.bundled import texts
from engine.bundled.ngrams import Judge
from engine.bundled.texts import Message
from engine.chat import Chat
from engine.kv import common
from engine.types import LabelRole, Speaker, TextRole, Turn

SMOOTHING = 0.06
"""What a mood's label leaves to the others: the model shall not be surer than it is right."""
JUDGED = 0.6
"""How much of a mood's target is what the judge thinks; the rest is the label."""
MENDED, FILLED = 0.2, 30
"""Share of messages made of halves of two others; messages a template gives to the judge."""
SCATTER, FORGET = 0.06, 0.05
"""Shares of a message's tokens that are spelt in pieces, or left out: real people write words we have not seen."""
ASKED = 0.5
"""Share of questions to answer that come from the files about what customers want; the rest from all."""
SHARES = {
    "online_shopping": 0.28,
    "goemotions": 0.12,
    "sst2": 0.08,
    "imdb": 0.015,
    "written": 0.40,
    "templates": 0.08,
    "bitext": 0.015,
    "nothing": 0.01,
}
"""How often each source gives a message whose mood is learned."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, and for the positions in `targets` what follows them: one token, or odds of several.

    At the positions in `hints`, the words of a message, the model is asked for what follows the message as well, the
    label or the first word of the answer: what it thinks after half a sentence; of a mood, what the judge thinks.
    `effects` are what each word of a message did to the mood, in the judge's eyes, learned from the first layer.
    Nothing is read there in serving; it teaches the meaning of words far sooner than the end of the prompt alone does.
    """

    ids: list[int]
    targets: dict[int, dict[int, float]] = field(default_factory=dict)
    hints: dict[int, dict[int, float]] = field(default_factory=dict)
    effects: dict[int, float] = field(default_factory=dict)


def fitted(public: dict[str, list[Message]]) -> Judge:
    """The judge of moods, from the messages that the model learns from. Takes a minute."""
    fill = Random(0)
    filled = [template.fill(fill) for template in texts.templates(texts.CORPUS) for _ in range(FILLED)]
    sources = {**_learned(public), "templates": filled}
    return Judge.of(
        [(share, [(each.text, each.negative) for each in sources.get(name, [])]) for name, share in SHARES.items()]
    )


class Teacher:
    """Makes examples, without end, from everything there is to learn."""

    def __init__(
        self, chat: Chat, words: Tokenizer, public: dict[str, list[Message]], judge: Judge, random: Random
    ) -> None:
        """`chat` and `words` are the same tokenizer."""
        self._chat = chat
        self._words = words
        self._judge = judge
        self._random = random
        learned = _learned(public)
        self._moods = {name: _by_mood(found) for name, found in learned.items()}
        self._turned = _by_mood([each for each in learned["written"] if each.text in texts.turned()])
        self._intents = _by_language_and_intent(learned["written"])
        self._asked = _by_language_and_intent([each for each in learned["written"] if each.text in texts.asked()])
        self._more_intents = learned["bitext"]
        self._templates = texts.templates(texts.CORPUS)
        self._mood, self._intent = roles.sentiment(), roles.intent()
        self._frames = {role.name: self._frame(role) for role in (self._mood, self._intent)}
        self._end, self._gap = chat.encode("<|im_end|>"), chat.encode("\n")
        self._opening = chat.encode("<|im_start|>assistant\n")
        self._empty_turn = self._turn("")
        self._pieces: dict[int, list[int]] = {}

    # -- labels ------------------------------------------------------------------------------------

    def moods(self, count: int, turned: float = 0.0) -> list[Example]:
        """Messages and their moods; a share of turned ones besides those that come by chance."""
        sources = self._random.choices(list(SHARES), list(SHARES.values()), k=count)
        return [self._mood_of(each, turned) for each in sources]

    def intents(self, count: int) -> list[Example]:
        """Messages and what they are about."""
        return [self._intent_of(self._asking()) for _ in range(count)]

    def _mood_of(self, source: str, turned: float) -> Example:
        if source == "nothing":
            text = self._random.choice((*roles.CONTENT_FREE, "...", "。", "？", "-", "hm", "嗯"))
            return self._labelled(self._mood, text, dict.fromkeys(self._mood.labels, 1 / len(self._mood.labels)))
        drawn = self._random.random()
        if drawn < MENDED:
            halves = [self._half(self._drawn(source).text), self._half(self._drawn(source).text)]
            return self._judged(self._random.choice((" ", "，", ". ", "")).join(halves), None)
        if drawn < MENDED + turned and self._turned:
            message = self._random.choice(self._random.choice(self._turned))
        else:
            message = self._drawn(source)
        varied = texts.vary(message, self._random)
        return self._judged(varied.text, varied.negative)

    def _drawn(self, source: str) -> Message:
        if source == "templates":
            return self._random.choice(self._templates).fill(self._random)
        return self._random.choice(self._random.choice(self._moods[source]))

    def _half(self, text: str) -> str:
        begin = self._random.randrange(max(1, len(text) - 3))
        return text[begin : self._random.randint(min(len(text), begin + 3), len(text))]

    def _judged(self, text: str, negative: bool | None) -> Example:
        """A mood as the judge sees it after each word, and at the end as the label says, too, where there is one."""
        read = zip(*(values.tolist() for values in self._judge.read(text)), strict=True)
        so_far = [(self._odds(log_odds), effect) for log_odds, effect in read]
        glad, sad = self._mood.labels
        odds, _ = so_far[-1]
        if negative is not None:
            label = {sad if negative else glad: 1 - SMOOTHING, glad if negative else sad: SMOOTHING}
            odds = {mood: JUDGED * odds[mood] + (1 - JUDGED) * label[mood] for mood in odds}
        return self._labelled(self._mood, text, odds, so_far)

    def _odds(self, log_odds: float) -> dict[str, float]:
        glad, sad = self._mood.labels
        unhappy = 1 / (1 + math.exp(-max(-4.0, min(4.0, log_odds))))
        return {glad: 1 - unhappy, sad: unhappy}

    def _asking(self) -> Message:
        if self._random.random() < 0.15:
            return self._random.choice(self._more_intents)
        return self._random.choice(self._intents[self._random.choice(list(self._intents))])

    def _intent_of(self, message: Message) -> Example:
        label = texts.INTENT_LABEL.get(message.intent, texts.OTHER)
        return self._labelled(self._intent, texts.vary(message, self._random).text, {label: 1.0})

    def _frame(self, role: LabelRole) -> tuple[list[int], list[int], int]:
        """What stands before and behind a question, as the template has it, and the letters before its text."""
        before, _, behind = role.prompt.partition("{text}")
        whole, question = self._chat.question(role, ""), self._chat.encode(before + behind)
        starts = (at for at in range(len(whole)) if whole[at : at + len(question)] == question)
        start = next(starts)
        return whole[:start], whole[start + len(question) :], len(before)

    def _labelled(
        self,
        role: LabelRole,
        text: str,
        odds: dict[str, float],
        so_far: Sequence[tuple[dict[str, float], float]] = (),
    ) -> Example:
        """`so_far`: the odds and the sum of the effects after so many letters of the text; else the odds are those of
        the whole, and there are no effects."""
        head, tail, skipped = self._frames[role.name]
        question = self._words.encode(role.prompt.replace("{text}", text))
        ends = [end - skipped for _, end in question.offsets]
        start = sum(end <= 0 for end in ends)
        stop = sum(end <= len(text) for end in ends)
        kept = self._roughened(question.ids, start, stop)
        first = {label: self._chat.encode(label)[0] for label in role.labels}
        example = Example(head + [token for token, _ in kept] + tail)
        before = 0.0
        for place, (_, origin) in enumerate(kept):
            if start <= origin < stop:
                now, effect = so_far[min(ends[origin], len(so_far) - 1)] if so_far else (odds, 0.0)
                example.hints[len(head) + place] = {first[label]: share for label, share in now.items()}
                if so_far:
                    example.effects[len(head) + place], before = effect - before, effect
        example.targets[len(example.ids) - 1] = {first[label]: share for label, share in odds.items()}
        return example

    # -- replies -----------------------------------------------------------------------------------

    def conversations(self, count: int) -> list[Example]:
        """Of customers of one shop, so that its instructions are read once a batch."""
        role = self._shop()
        return [self._conversation(role) for _ in range(count)]

    def _conversation(self, role: TextRole) -> Example:
        """One to four questions of one customer and the answers to them."""
        language = self._random.choice(texts.LANGUAGES)
        example = Example(self._chat.prompt(role, [])[: -len(self._opening)])
        for number in range(self._random.choice((1, 2, 3, 4))):
            message = self._asking_for_words(
                language if self._random.random() < 0.95 else self._random.choice(texts.LANGUAGES)
            )
            answers = self._answers(message)
            self._ask(example, message.text, number == 0, _odds(answers))
            self._answer(example, self._random.choice(answers), _odds(answers))
        return example

    def openings(self, count: int) -> list[Example]:
        """Of customers of one shop: one question each, and the first word of the answer, which decides it all."""
        role = self._shop()
        return [self._opening_of(role) for _ in range(count)]

    def _opening_of(self, role: TextRole) -> Example:
        message = self._asking_for_words(self._random.choice(texts.LANGUAGES))
        odds = _odds(self._answers(message))
        example = Example(self._chat.prompt(role, [])[: -len(self._opening)])
        self._ask(example, message.text, True, odds)
        example.targets[len(example.ids) - 1] = odds
        return example

    def _asking_for_words(self, language: str) -> Message:
        """What is said in more ways needs more examples. Praise of goods outnumbers thanks for help by far, and must
        not crowd them out."""
        intents = [each for each in self._intents if each[0] == language]
        (intent,) = self._random.choices(intents, [len(self._intents[each]) ** 0.4 for each in intents])
        asked = self._asked.get(intent, []) if self._random.random() < ASKED else []
        return texts.vary(self._random.choice(asked or self._intents[intent]), self._random)

    def _ask(self, example: Example, text: str, first: bool, odds: dict[int, float]) -> None:
        """A customer's turn up to where the assistant begins, as the template has it."""
        turn = self._turn(text)
        start, rest = common(self._empty_turn, turn), common(self._empty_turn[::-1], turn[::-1])
        turn = [token for token, _ in self._roughened(turn, start, len(turn) - rest)]
        before = len(example.ids) + (0 if first else len(self._gap))
        example.ids.extend(turn if first else self._gap + turn)
        example.hints.update(dict.fromkeys(range(before + start, len(example.ids) - rest), odds))

    def _answer(self, example: Example, answer: Sequence[int], odds: dict[int, float]) -> None:
        """At its first word the odds of all that would fit are learned, further on the words of this one."""
        for token in [*answer, *self._end]:
            example.targets[len(example.ids) - 1] = odds or {token: 1.0}
            example.ids.append(token)
            odds = {}

    def _answers(self, message: Message) -> list[list[int]]:
        return [self._chat.encode(answer) for answer in texts.replies()[message.intent][message.language]]

    def _turn(self, text: str) -> list[int]:
        nobody = TextRole("", "")
        before = len(self._chat.prompt(nobody, [])) - len(self._opening)
        return self._chat.prompt(nobody, [Turn(Speaker.USER, text)])[before:]

    def _shop(self) -> TextRole:
        """The reply role of some shop: a model that has seen one alone would not know its role at another."""
        name, about, facts = self._random.choice(_NAMES), self._random.choice(_ABOUT), list(_FACTS)
        self._random.shuffle(facts)
        return roles.reply(name, about, facts[: self._random.choice((0, 0, 1, 2, 3))])

    # -- rougher than it was written ---------------------------------------------------------------

    def _roughened(self, ids: Sequence[int], start: int, end: int) -> list[tuple[int, int]]:
        """The tokens, each with its place in `ids`; between `start` and `end` some are spelt in pieces or left out."""
        rough = list[tuple[int, int]]()
        for place, token in enumerate(ids):
            drawn = self._random.random()
            if start <= place < end and drawn < SCATTER:
                rough += [(piece, place) for piece in self._spelt(token)]
            elif not start <= place < end or drawn > FORGET + SCATTER or end - start < 4:
                rough.append((token, place))
        return rough

    def _spelt(self, token: int) -> list[int]:
        """A token's characters, each by itself; tokens of parts of characters stay as they are."""
        if token not in self._pieces:
            text = self._chat.text([token]) if token else ""
            whole = self._chat.encode(text) == [token]
            self._pieces[token] = [each for char in text for each in self._chat.encode(char)] if whole else [token]
        return self._pieces[token]


_NAMES = (
    *("", "", "Blue Door", "Harbour Cycles", "Mill Lane Bakery", "Lotus", "Northern Light", "The Paper Shop"),
    *("晨光小店", "晨光小店 Morning Light", "小鹿家居", "四季花坊", "老街书店", "云朵童装", "好味厨房", "阿强数码"),
)
_ABOUT = (
    *("", "", "A small shop for tea, cups and tea sets.", "We sell and repair bicycles.", "Clothes for children."),
    *("一家卖茶叶和茶具的小店。", "手机配件和维修。", "家常菜外卖。", "Books, paper and pens.", "鲜花当天配送。"),
)
_FACTS = (
    *("Open Monday to Saturday, 9:00 to 18:00.", "Delivery takes two to four days and is free from 99 yuan."),
    *("Unused goods can be returned or exchanged within 7 days.", "Closed on public holidays.", "We ship abroad."),
    *(
        "营业时间每天 10:00 到 21:00。",
        "满 59 元包邮，一般三天内送到。",
        "七天无理由退换。",
        "可以开电子发票。",
        "周一休息。",
    ),
    *(
        "Gift wrapping costs 2 euros.",
        "Pick-up at the shop is free.",
        "会员九五折。",
        "门店在地铁站旁边。",
        "All prices include tax.",
    ),
)


def _odds(answers: Sequence[Sequence[int]]) -> dict[int, float]:
    """Of the tokens that the answers begin with, each answer being as likely as another."""
    counted = Counter(answer[0] for answer in answers)
    return {token: count / len(answers) for token, count in counted.items()}


def _learned(public: dict[str, list[Message]]) -> dict[str, list[Message]]:
    sources = {"written": list(texts.written()), **public}
    return {name: [each for each in found if not held_back(each)] for name, found in sources.items()}


def held_back(message: Message) -> bool:
    """One message in forty is never learned from: how well these are judged is what training watches."""
    return Random(message.text).random() < 0.025


def _by_mood(messages: Sequence[Message]) -> list[list[Message]]:
    """Drawn from in turn, so that neither mood is the likelier one before a word was read."""
    moods = ([each for each in messages if each.negative == negative] for negative in (False, True))
    return [found for found in moods if found]


def _by_language_and_intent(messages: Sequence[Message]) -> dict[tuple[str, str], list[Message]]:
    found: dict[tuple[str, str], list[Message]] = {}
    for message in messages:
        if message.intent:
            found.setdefault((message.language, message.intent), []).append(message)
    return found
