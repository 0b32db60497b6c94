"""From the model's logits to the next token."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 128
"""Of probabilities summed together."""


def choose(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> int:
    """The next token from `logits` (vocabulary,): the likeliest at temperature 0, else drawn from the softmax.

    A block of tokens is drawn by the sum of its probabilities, then the token in it, each by one random number.
    torch.multinomial draws a number for every token of the vocabulary, and one running sum over all 150,000 of them
    cannot be shared among a processor's lanes: they took a fifth and a hundredth of the time of a token.
    """
    if temperature == 0:
        return int(logits.argmax())
    shares = (logits - logits.amax()).div_(temperature).exp_()  # their sum need not be 1, as torch.softmax makes it
    if spare := -len(shares) % BLOCK:
        shares = functional.pad(shares, (0, spare))
    blocks = shares.view(-1, BLOCK)
    block = _drawn(blocks.sum(dim=-1), generator)
    return block * BLOCK + _drawn(blocks[block], generator)


def _drawn(shares: Tensor, generator: torch.Generator | None) -> int:
    """One of `shares` (n,), each as often as it is large, and none that is 0."""
    reached = shares.cumsum(dim=-1, dtype=torch.float64)
    number = 1 - torch.rand(1, generator=generator, dtype=torch.float64)  # in (0, 1]
    return int(torch.searchsorted(reached, number * reached[-1]))


def penalise(logits: Tensor, tokens: Iterable[int], penalty: float) -> Tensor:
    """Logits (vocabulary,) with each of `tokens` made less likely, once however often it occurs.

    A positive logit is divided by `penalty`, a negative one multiplied (Keskar et al. 2019, CTRL, arXiv 1909.05858, in
    the form of transformers' RepetitionPenaltyLogitsProcessor). Which tokens count is the caller's decision:
    docs/decisions/0002-repetition-penalty.md.
    """
    seen = torch.tensor(sorted(set(tokens)), dtype=torch.long)
    penalised = logits.clone()
    scores = penalised[seen]
    penalised[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    return penalised


def penalise_rows(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """penalise() for many positions at once: `logits` (rows, vocabulary), `seen` a mask of the same shape."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
