import pytest
import torch

from ludus.generation.sampling import restrict, sample

LOGITS = torch.tensor([2.0, 0.5, -1.0, 1.0, -3.0, 0.0, 1.5, -0.5])
DRAWS = 20_000


def drawn(logits: torch.Tensor = LOGITS, seed: int = 0, **how) -> torch.Tensor:
    """Draw many tokens from one distribution and count them."""
    generator = torch.Generator().manual_seed(seed)
    tokens, _ = sample(logits.expand(DRAWS, -1), **{"temperature": 1.0, **how}, generator=generator)
    return tokens.bincount(minlength=len(logits)).double()


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    possible = probabilities > 0
    assert not counts[~possible].any()
    expected = probabilities[possible].double() * counts.sum()
    return float(((counts[possible] - expected) ** 2 / expected).sum())


# The chance that 7 degrees of freedom exceed 24.3 is one in a thousand; the draws are fixed, so this never flickers.
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_probabilities(temperature: float, seed: int):
    probabilities = (LOGITS / temperature).softmax(0)
    assert chi_square(drawn(temperature=temperature, seed=seed), probabilities) < 24.3


@pytest.mark.parametrize("how", [{"top_k": 3}, {"top_p": 0.7}, {"top_k": 4, "top_p": 0.6}])
def test_frequencies_of_restricted_tokens_are_their_probabilities(how: dict):
    probabilities = restrict(LOGITS[None], **how)[0].softmax(0)
    assert chi_square(drawn(**how), probabilities) < 24.3


def test_rare_tokens_are_drawn_as_rarely_as_they_should_be():
    logits = torch.tensor([0.0, -6.0, -7.0, -30.0])
    counts = drawn(logits)
    expected = logits.softmax(0) * DRAWS
    assert counts[3] == 0
    assert all(abs(counts[i] - expected[i]) < 4 * expected[i] ** 0.5 for i in (1, 2))


def test_forbidden_tokens_are_never_drawn_wherever_they_stand():
    logits = torch.full((6,), float("-inf"))
    for only in range(6):
        one = logits.clone()
        one[only] = 3.0
        assert drawn(one)[only] == DRAWS


@pytest.mark.parametrize(("number", "expected"), [(0.0, 1), (1 - 2**-24, 4)])
def test_the_least_and_the_greatest_random_numbers_draw_allowed_tokens(monkeypatch, number: float, expected: int):
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.5, 0.3, -torch.inf]])
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, number))
    tokens, _ = sample(logits, temperature=1.0, generator=None)
    assert tokens.tolist() == [expected]


def test_top_k_keeps_the_best():
    kept = restrict(LOGITS[None], top_k=3).isfinite()[0]
    assert kept.nonzero()[:, 0].tolist() == [0, 3, 6]
    assert torch.equal(restrict(LOGITS[None], top_k=0), LOGITS[None])
    assert torch.equal(restrict(LOGITS[None], top_k=99), LOGITS[None])


def test_top_k_never_draws_more_tokens_than_it_says():
    counts = drawn(torch.tensor([1.0, 2.0, 1.0, 1.0, 3.0]), top_k=3)
    assert counts.count_nonzero() == 3
    assert counts[1] > 0 < counts[4]


@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.9, 0.98])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float):
    probabilities = LOGITS.softmax(0)
    kept = restrict(LOGITS[None], top_p=top_p).isfinite()[0]
    assert kept[LOGITS.argmax()]
    assert probabilities[kept].sum() >= top_p
    least = probabilities[kept].min()
    assert probabilities[~kept].max() < least
    assert kept.sum() == 1 or probabilities[kept].sum() - least < top_p


def test_log_probabilities_are_those_of_the_distribution_drawn_from():
    logits = LOGITS.expand(50, -1)
    generator = torch.Generator().manual_seed(0)
    tokens, logps = sample(logits, temperature=0.7, generator=generator, top_k=4)
    expected = restrict(logits / 0.7, top_k=4).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logps, expected)


def test_temperature_zero_takes_the_best_and_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    tokens, logps = sample(LOGITS[None], temperature=0, generator=generator)
    assert tokens.tolist() == [0]
    torch.testing.assert_close(logps, LOGITS.log_softmax(0)[:1])
    assert torch.equal(generator.get_state(), before)


def test_a_generator_decides_everything():
    before = torch.get_rng_state()
    assert torch.equal(drawn(seed=4), drawn(seed=4))
    assert not torch.equal(drawn(seed=4), drawn(seed=5))
    assert torch.equal(torch.get_rng_state(), before)
