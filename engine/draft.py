"""Guesses at what a reply says next, from what was said before. Knows neither torch nor words.

Reading a few tokens at once costs hardly more than reading one, because the time goes into fetching the weights. So a
reply's likely next tokens are read along with its last one (prompt lookup decoding). Each token is still drawn by the
model as if nothing had been guessed; a guess is kept only where it is the token that was drawn, so replies are
distributed exactly as without guessing, and nothing said to one customer can be told to another unless the model itself
says it. Replies of a front desk repeat each other, which is what makes guesses good.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

CONTEXT = 3
"""Tokens that must have gone before alike."""
REPLIES = 300
"""How many past replies are remembered."""
ROWS = 8
"""Tokens of all replies together that one step reads at hardly more than the cost of one."""


class Index:
    """Where each run of CONTEXT tokens last occurred."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._after: dict[tuple[int, ...], tuple[Sequence[int], int]] = {}
        self.add(tokens)

    def add(self, tokens: Sequence[int]) -> None:
        for end in range(CONTEXT, len(tokens)):
            self._after[tuple(tokens[end - CONTEXT : end])] = tokens, end

    def forget(self, tokens: Sequence[int]) -> None:
        """Remove what was added with this very sequence and did not occur again since."""
        for end in range(CONTEXT, len(tokens)):
            run = tuple(tokens[end - CONTEXT : end])
            if self._after.get(run, ((), 0))[0] is tokens:
                del self._after[run]

    def after(self, context: Sequence[int], most: int) -> Sequence[int]:
        """At most `most` tokens that followed the last CONTEXT tokens of `context` when they last occurred."""
        tokens, end = self._after.get(tuple(context[-CONTEXT:]), ((), 0))
        return tokens[end : end + most]


class Replies:
    """The replies of this deployment, the latest ones, for guessing from."""

    def __init__(self, most: int = REPLIES) -> None:
        self._most = most
        self._index = Index()
        self._said: deque[Sequence[int]] = deque()

    def learn(self, opening: Sequence[int], reply: Sequence[int]) -> None:
        """Remember a reply, which began after the tokens of `opening`."""
        tokens = [*opening[-CONTEXT:], *reply]
        self._said.append(tokens)
        self._index.add(tokens)
        if len(self._said) > self._most:
            self._index.forget(self._said.popleft())

    def after(self, context: Sequence[int], most: int) -> Sequence[int]:
        """As Index.after(), from the latest reply in which the context occurs."""
        return self._index.after(context, most)
