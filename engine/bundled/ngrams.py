"""A linear judge of moods on n-grams of letters and words, which the bundled model learns from beside the labels.

It is fitted in a minute on the very messages that the model learns from, and judges unseen ones well, for it sees every
n-gram of them at once. What it thinks after each letter of a message, and what each word did to that, tells the model
what words and pairs of words mean; the one label at the end of a whole message teaches the same far more slowly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

LETTERS, WORDS = 4, 3
"""The longest n-grams of letters and of words."""
FREEDOM = 8.0
"""Inverse strength of the L2 penalty."""
_WORD = re.compile(r"[a-z']+|[\u4e00-\u9fff]|[!?！？]")
_CACHED = 400_000

MOST_OF_WORDS, TYPICAL_EFFECT = 6.0, 40.0
"""How much more than letters words may count in the sum of effects, where a text has hardly any; and what makes the
effect of one word about 1."""

Floats = NDArray[np.float32]
Places = NDArray[np.int32]


class Judge:
    """Logistic regression on n-grams weighted by their rarity, letters' and words' normed each to length one."""

    def __init__(self, texts: Sequence[str], unhappy: Sequence[bool], weights: Sequence[float]) -> None:
        """Fit to texts and whether they are unhappy; an n-gram that only one text holds is left out."""
        held = Counter(chain.from_iterable({gram for kind in _grams(text) for gram, _ in kind} for text in texts))
        self._numbers = {gram: number for number, gram in enumerate(gram for gram, count in held.items() if count > 1)}
        counts = np.array([held[gram] for gram in self._numbers])
        self._rarity: Floats = (np.log((1 + len(texts)) / (1 + counts)) + 1).astype(np.float32)
        self._effect = np.zeros_like(self._rarity)
        found = LogisticRegression(C=FREEDOM, solver="liblinear")
        found.fit(self._matrix(texts), np.array(unhappy), np.array(weights) / np.mean(weights))
        self._effect = found.coef_[0].astype(np.float32) * self._rarity
        self._base = float(found.intercept_[0])
        self.read = lru_cache(_CACHED)(self._read)

    @classmethod
    def of(cls, groups: Sequence[tuple[float, Sequence[tuple[str, bool]]]]) -> Self:
        """From groups of (text, unhappy), each with the weight it has as a whole, both moods alike in it."""
        texts, moods, weights = list[str](), list[bool](), list[float]()
        for weight, messages in groups:
            for mood in (False, True):
                some = [text for text, unhappy in messages if unhappy == mood]
                texts += some
                moods += [mood] * len(some)
                weights += [weight / max(1, len(some))] * len(some)
        return cls(texts, moods, weights)

    def _read(self, text: str) -> tuple[Floats, Floats]:
        """Both (letters + 1,), before the first letter and after each one: the log-odds that the customer is unhappy,
        and the sum of what single n-grams say of that, which grows with the text."""
        text = text.lower()
        letters, words = (self._said(known, len(text)) for known in self._known(text))
        odds = np.full(len(text) + 1, self._base, dtype=np.float32)
        for effect, size in (letters, words):
            odds += effect / np.sqrt(np.maximum(size, 1e-6))
        more = np.sqrt(letters[1][-1] / max(1e-4, words[1][-1]))
        return odds, (letters[0] + min(more, MOST_OF_WORDS) * words[0]) / TYPICAL_EFFECT

    def _said(self, known: tuple[Places, Places], length: int) -> tuple[Floats, Floats]:
        """Of the n-grams so far, after each letter: the sum of their effects, and of their squared weights."""
        numbers, ends = known
        effect = np.bincount(ends, self._effect[numbers], length + 1).cumsum()
        return effect.astype(np.float32), np.bincount(ends, self._rarity[numbers] ** 2, length + 1).cumsum()

    def _matrix(self, texts: Sequence[str]) -> Any:
        values, columns, rows = list[Floats](), list[NDArray[np.int32]](), [0]
        for text in texts:
            for numbers, _ in self._known(text):
                rarity = self._rarity[numbers]
                values.append(rarity / max(1e-3, float(np.sqrt((rarity**2).sum()))))
                columns.append(numbers)
            rows.append(rows[-1] + len(columns[-1]) + len(columns[-2]))
        shape = (len(texts), len(self._numbers))
        found = csr_matrix((np.concatenate(values), np.concatenate(columns), rows), shape=shape)
        found.sum_duplicates()
        return found

    def _known(self, text: str) -> Iterator[tuple[Places, Places]]:
        """Of letters, then of words: the n-grams that count, and after how many letters each is complete."""
        for kind in _grams(text):
            known = [(self._numbers[gram], end) for gram, end in kind if gram in self._numbers]
            pairs = np.array(known, dtype=np.int32).reshape(-1, 2)
            yield pairs[:, 0], pairs[:, 1]


def _grams(text: str) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """N-grams of letters and of words, each with the number of letters after which it is complete."""
    text = re.sub(r"\d", "0", text.lower())  # a number says nothing about a mood
    letters = [(text[end - size : end], end) for size in range(1, LETTERS + 1) for end in range(size, len(text) + 1)]
    found = [(word.group(), word.end()) for word in _WORD.finditer(text)]
    words = [
        (" ".join(["", *(word for word, _ in found[last - size : last])]), found[last - 1][1])
        for size in range(1, WORDS + 1)
        for last in range(size, len(found) + 1)
    ]
    return letters, words
