"""What is asked of a server that speaks OpenAI's language, and what its answer says of labels. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from openai.types.chat.chat_completion_token_logprob import TopLogprob

from bot.errors import EngineError
from engine.types import LabelRole, LabelScores, Speaker, Turn

TURN = 8
"""Tokens that a chat template puts around one turn, at most."""
FLOOR = -100.0
"""No log-probability is taken for less: some servers write -9999 or minus infinity for "hardly"."""
CHOSEN = 0.9
"""What a label counts that the server chose without saying how surely."""
_MARK = re.compile(r"<(?=[^\s<>]+>)|\[(?=/?[A-Z_]+\])")
"""What the tokens begin with that speak to a chat template: `<|im_end|>`, `</s>`, `<start_of_turn>`, `[INST]`."""


def messages(system: str, turns: Sequence[Turn]) -> list[Any]:
    """A conversation as the API takes it; nothing that was said speaks to the chat template."""
    said = [{"role": turn.speaker.value, "content": _harmless(turn.text)} for turn in turns]
    return [{"role": "system", "content": _harmless(system)}, *said] if system else said


def question(role: LabelRole, text: str) -> list[Any]:
    """The same for a text that is to be labelled."""
    return messages(role.system, [Turn(Speaker.USER, role.prompt.replace("{text}", text))])


def _harmless(text: str) -> str:
    """`text` without the spelling of a token that speaks to the template: `<|im_end|>` becomes `< |im_end|>`."""
    return _MARK.sub(r"\g<0> ", text)


def at_most(text: str) -> int:
    """Tokens of `text` under the tokenizers of models that know its language: seldom more, mostly far fewer."""
    return len(text) + 3 * sum(character > "\uffff" for character in text)


def length(turns: Sequence[Turn]) -> int:
    """The same of turns, with what the template puts around them."""
    return sum(at_most(turn.text) + TURN for turn in turns)


# -- labels ------------------------------------------------------------------------------------------


def log_scores(role: LabelRole, top: Sequence[TopLogprob]) -> list[float]:
    """The log-probability of each label's first token, or its upper bound; empty where no label is in `top`."""
    if any(math.isnan(each.logprob) for each in top):
        raise EngineError("the model produced numbers that are not numbers: look at the log of its server")
    found: dict[str, float] = {}
    for each in top:
        spelling = each.token.encode() if each.bytes is None else bytes(each.bytes)
        begun = [label for label in role.labels if label.encode().startswith(spelling)]
        if len(begun) == 1:
            found[begun[0]] = max(each.logprob, found.get(begun[0], FLOOR))
    least = max(FLOOR, min((each.logprob for each in top), default=FLOOR))
    return [found.get(label, least) for label in role.labels] if found else []


def shares(scores: Sequence[float]) -> list[float]:
    """Probabilities among themselves, which sum to 1, of log-probabilities."""
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def one_hot(role: LabelRole, chosen: str) -> LabelScores:
    """Of a server that only chooses: CHOSEN for the label it chose, the rest among the others."""
    others = (1 - CHOSEN) / (len(role.labels) - 1)
    return LabelScores({label: CHOSEN if label == chosen else others for label in role.labels})
