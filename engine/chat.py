"""Between words and token ids: the official chat template, and text that can be shown. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from engine.types import LabelRole, Speaker, TextRole, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])
"""Control characters other than tab and newline, for str.translate: no part of a reply."""


class Chat:
    """A chat model's tokenizer. Not for several threads at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def prompt(self, role: TextRole, turns: Sequence[Turn]) -> list[int]:
        """Ids of system prompt and turns, up to where the assistant begins to speak."""
        return self._render(role.system, turns)

    def question(self, role: LabelRole, text: str) -> list[int]:
        """Ids of a label role's question about `text`, up to where the label stands."""
        return self._render(role.system, [Turn(Speaker.USER, role.prompt.replace("{text}", text))])

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone."""
        return cast(list[int], self._tokenizer.encode(text, add_special_tokens=False))

    def text(self, tokens: list[int]) -> str:
        """What can be shown of a reply so far: no special token, no character whose last bytes are still to come."""
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return shown(cast(str, text))

    def _render(self, system: str, turns: Sequence[Turn]) -> list[int]:
        messages = [{"role": "system", "content": self._harmless(system)}]
        messages += [{"role": turn.speaker.value, "content": self._harmless(turn.text)} for turn in turns]
        ids = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return cast(list[int], ids)

    def _harmless(self, text: str) -> str:
        """`text` without the spelling of a token that speaks to the template: `<|im_end|>` becomes `< |im_end|>`."""
        for token in self._tokenizer.get_added_vocab():
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def shown(text: str) -> str:
    """What of a decoded text can be shown."""
    return text.rstrip("\ufffd").translate(CONTROLS).strip()
