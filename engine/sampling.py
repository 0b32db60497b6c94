"""From the model's logits to the next token."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def choose(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> int:
    """The next token from `logits` (vocabulary,): the likeliest at temperature 0, else drawn from the softmax.

    One random number in (0, 1] finds its place among the summed probabilities. torch.multinomial draws one for every
    token of the vocabulary: ten times as long for 150,000 of them, a tenth of the time a token takes.
    """
    if temperature == 0:
        return int(logits.argmax())
    reached = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1)
    drawn = (1 - torch.rand(1, generator=generator, dtype=torch.float64)) * reached[-1]
    return int(torch.searchsorted(reached, drawn.to(reached.dtype)))


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
