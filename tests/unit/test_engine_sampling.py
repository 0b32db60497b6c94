import torch
from scipy.stats import chi2
from transformers import RepetitionPenaltyLogitsProcessor

from engine.sampling import BLOCK, choose, penalise

LOGITS = torch.tensor([2.0, -1.0, 0.5, 3.0])


def test_temperature_zero_takes_the_likeliest() -> None:
    assert choose(LOGITS, 0.0) == 3


def test_sampling_follows_the_softmax_at_the_temperature() -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.tensor([choose(LOGITS, 0.7, generator) for _ in range(4000)])
    expected = torch.softmax(LOGITS / 0.7, dim=-1)
    assert torch.allclose(torch.bincount(drawn, minlength=4) / 4000, expected, atol=0.03)


def test_sampling_follows_the_softmax_over_a_vocabulary_of_many_blocks_and_never_says_what_has_no_share() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3 * BLOCK + 5, generator=generator)
    logits[::3] = -torch.inf
    drawn = torch.bincount(torch.tensor([choose(logits, 0.9, generator) for _ in range(20_000)]), minlength=len(logits))
    expected = 20_000 * torch.softmax(logits / 0.9, dim=-1)
    said = expected > 0
    assert not drawn[~said].any()
    chi_square = ((drawn - expected)[said].square() / expected[said]).sum()
    assert chi_square < chi2.ppf(0.999, int(said.sum()) - 1)


def test_the_same_seed_draws_the_same_tokens() -> None:
    draws = [[choose(LOGITS, 1.0, generator) for _ in range(20)] for generator in map(_seeded, [7, 7, 8])]
    assert draws[0] == draws[1] != draws[2]


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_penalty_makes_named_tokens_less_likely_and_leaves_the_rest() -> None:
    assert torch.equal(penalise(LOGITS, [0, 1, 1], 2.0), torch.tensor([1.0, -2.0, 0.5, 3.0]))


def test_nothing_is_penalised_before_the_first_token_or_at_penalty_one() -> None:
    assert torch.equal(penalise(LOGITS, [], 2.0), LOGITS)
    assert torch.equal(penalise(LOGITS, [0, 1], 1.0), LOGITS)


def test_the_penalty_is_transformers_own_when_it_counts_the_same_tokens() -> None:
    tokens = [3, 1, 3]
    theirs = RepetitionPenaltyLogitsProcessor(1.2)(torch.tensor([tokens]), LOGITS.clone()[None])[0]
    assert torch.equal(penalise(LOGITS, tokens, 1.2), theirs)
