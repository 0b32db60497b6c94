"""Who goes next: which tokens of which requests make up one step of the model. Knows neither torch nor words.

A step has a budget of tokens, so that no step takes long and nobody's stream stalls. Replies that are being written
come first (their last token and what is guessed of the next ones), then labels, which are short and shown at once, then
the prompts of new replies. Labels need not share their step with prompts, but never twice in a row: however many labels
come, the oldest prompt moves on a little in every second step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

BUDGET = 128
"""Tokens of one step: about a tenth of a second of a 0.5 B model on two cores."""
RESERVE = 16
"""Tokens of a step that labels leave to the oldest prompt of a reply."""


@dataclass(slots=True, eq=False)
class Item:
    """A request in line. `waiting` tokens are still to be read; those of a `speaking` reply all in one step."""

    urgent: bool
    waiting: int
    speaking: bool = False
    served: int = -1


Each = TypeVar("Each", bound=Item)


class Scheduler(Generic[Each]):
    """The line, in order of arrival."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._items: list[Each] = []
        self._step = 0
        self._prompts_waited = False

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Each]:
        return iter(list(self._items))

    def add(self, item: Each) -> None:
        self._items.append(item)

    def remove(self, item: Each) -> None:
        self._items.remove(item)

    def plan(self) -> list[tuple[Each, int]]:
        """The next step: how many tokens of which items. Empty only when the line is."""
        self._step += 1
        chosen = list(self._planned())
        for item, _ in chosen:
            item.served = self._step
        return chosen

    def _planned(self) -> Iterator[tuple[Each, int]]:
        left = self._budget
        speaking = sorted((each for each in self._items if each.speaking), key=lambda each: each.served)
        for item in speaking:
            if item.waiting > left:
                break  # who is not served now comes first next time
            left -= item.waiting
            yield item, item.waiting
        labels = [each for each in self._items if each.urgent and not each.speaking]
        prompts = [each for each in self._items if not each.urgent and not each.speaking]
        self._prompts_waited = bool(labels and prompts and left) and not self._prompts_waited
        if self._prompts_waited:
            prompts = []
        kept = min(RESERVE, left, prompts[0].waiting) if prompts else 0
        left -= kept
        for item in labels:
            if left:
                share = min(left, item.waiting)
                left -= share
                yield item, share
        left += kept
        for item in prompts:
            if left:
                share = min(left, item.waiting)
                left -= share
                yield item, share
