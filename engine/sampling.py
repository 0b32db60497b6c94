"""From the model's logits to the next token."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def choose(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> int:
    """The next token from `logits` (vocabulary,): the likeliest at temperature 0, else drawn from the softmax."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))


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
