"""The tasks of the model. A role is data: a system prompt and a way to read the answer; a new task is a new value.

Prompts are zero-shot and hold nothing that varies between messages (no date, no name of a customer): what comes before
the customer's words is the same for every request of a role.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from bot.errors import ConfigError
from engine.types import LabelRole, TextRole

First = TypeVar("First", bound=Hashable)

CONTENT_FREE = ("", "N/A", "……")
"""Inputs that say nothing: what a model answers to them is its prior for the labels."""

SENTIMENT_LABELS = ("正面", "负面")
INTENT_LABELS = ("订单", "物流", "退款", "发票", "价格", "其他")


def sentiment(labels: Sequence[str] = SENTIMENT_LABELS) -> LabelRole:
    """The mood of one message."""
    return _classifier("sentiment", "情感", labels)


def intent(labels: Sequence[str] = INTENT_LABELS) -> LabelRole:
    """What one message is about."""
    return _classifier("intent", "主题", labels)


def _classifier(name: str, aspect: str, labels: Sequence[str]) -> LabelRole:
    return LabelRole(
        name=name,
        system=f"你是客服消息分类助手。判断顾客消息的{aspect}，只回答一个词：{'、'.join(labels)}。",
        prompt=f"顾客消息：{{text}}\n{aspect}：",
        labels=tuple(labels),
    )


def keywords() -> TextRole:
    """The few words a message turns on. Greedy and short: it extracts, it does not invent."""
    return TextRole(
        name="keywords",
        system="提取顾客消息中的关键词，最多五个，用逗号分隔。只输出关键词，不要解释。",
        temperature=0.0,
        repetition_penalty=1.0,
        max_new_tokens=32,
    )


def reply(
    name: str = "",
    about: str = "",
    facts: Sequence[str] = (),
    temperature: float = 0.7,
    repetition_penalty: float = 1.2,
    max_new_tokens: int = 128,
) -> TextRole:
    """The answer to a customer of the business called `name`, which knows `about` and `facts` and nothing else."""
    lines = [_introduction(_one_line(name), _one_line(about))]
    if facts:
        lines.append("Facts:")
        lines += [f"{number}. {_one_line(fact)}" for number, fact in enumerate(facts, start=1)]
    lines.append("Answer in the customer's language, politely, in one or two short sentences.")
    lines.append(
        "If a question about orders, prices or policy is not answered above, "
        "say that you do not know and offer to call a person. Never invent an answer."
    )
    return TextRole("reply", "\n".join(lines), temperature, repetition_penalty, max_new_tokens)


def _introduction(name: str, about: str) -> str:
    who = f"You are the customer service assistant of {name or 'this shop'}."
    return f"{who} {about}" if about else who


def _one_line(text: str) -> str:
    return " ".join(text.split())


def beginnings(role: LabelRole, begin: Callable[[str], Sequence[First]], alike: str) -> list[First]:
    """What each label begins with, which must tell it apart. Raises ConfigError for empty labels, and two `alike`."""
    owners: dict[First, str] = {}
    for label in role.labels:
        parts = begin(label)
        if not parts:
            raise ConfigError(f"a label of the role {role.name} is empty: give it a word")
        if parts[0] in owners:
            raise ConfigError(
                f"the labels {owners[parts[0]]} and {label} of the role {role.name} {alike}: choose words that begin "
                "differently"
            )
        owners[parts[0]] = label
    return list(owners)
