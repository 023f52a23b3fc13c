"""Sampling on the device against transformers' own logits processors, and draws against their probabilities."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm_qa.inference.sampling import Sampler, stream_seed, uniform
from llm_qa.inference.settings import ORIGINAL_SAMPLING, GenerationSettings

VOCABULARY = 50
PROMPT = [3, 3, 8, 20, 49]
SETTINGS = [
    GenerationSettings(do_sample=True),
    GenerationSettings(do_sample=True, temperature=0.7),
    GenerationSettings(do_sample=True, temperature=1.5, top_k=5),
    GenerationSettings(do_sample=True, top_p=0.6),
    GenerationSettings(do_sample=True, top_p=0.01),
    GenerationSettings(do_sample=True, temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.3),
    GenerationSettings(repetition_penalty=1.5),
    ORIGINAL_SAMPLING,
]


def transformers_probabilities(logits, settings: GenerationSettings) -> torch.Tensor:
    """What generate draws from, (vocabulary,); for greedy settings all of it on one token."""
    chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)])
    if settings.do_sample:
        chain += [TemperatureLogitsWarper(settings.temperature)]
        chain += [TopKLogitsWarper(settings.top_k)] if settings.top_k else []
        chain += [TopPLogitsWarper(settings.top_p)] if settings.top_p < 1 else []
    scores = chain(torch.tensor([PROMPT]), logits[None])[0]
    return scores.softmax(-1) if settings.do_sample else torch.eye(VOCABULARY)[scores.argmax()]


def started(settings: list[GenerationSettings], numbers=None) -> Sampler:
    sampler = Sampler(len(settings), VOCABULARY, torch.device("cpu"))
    rows = range(len(settings))
    sampler.start(list(rows), [PROMPT] * len(settings), settings, numbers or [0] * len(settings))
    return sampler


def test_the_distribution_of_every_row_is_that_of_transformers():
    torch.manual_seed(0)
    logits = 3 * torch.randn(len(SETTINGS), VOCABULARY)
    logits[:, 7] = logits[:, 9]  # equals at the edge of top-k
    sampler = started(SETTINGS)
    _, probabilities, tokens = sampler.distribution(logits, slice(None))
    got = torch.zeros_like(logits).scatter_(1, tokens, probabilities / probabilities.sum(-1, keepdim=True))
    for row, settings in enumerate(SETTINGS):
        wanted = transformers_probabilities(logits[row], settings)
        if settings.do_sample:
            torch.testing.assert_close(got[row], wanted, rtol=1e-4, atol=1e-6)
        else:
            assert (
                sampler.choose(logits, slice(None), torch.zeros(len(SETTINGS), dtype=torch.int64))[row]
                == wanted.argmax()
            )


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: str(s.arguments()))
def test_draws_are_as_frequent_as_transformers_says(settings):
    """Pearson's chi-squared test of 20,000 draws, of 200 streams at 100 places."""
    torch.manual_seed(1)
    logits, draws = 2 * torch.randn(VOCABULARY), 20_000
    sampler = started([settings] * 200, numbers=list(range(200)))
    seen = torch.zeros(VOCABULARY)
    for place in range(draws // 200):
        chosen = sampler.choose(logits.expand(200, -1), slice(None), torch.full((200,), place))
        seen += chosen.bincount(minlength=VOCABULARY)
    wanted = transformers_probabilities(logits, settings) * draws
    assert not seen[wanted == 0].any()
    frequent = wanted >= 5
    rest = torch.tensor([wanted[~frequent].sum(), seen[~frequent].sum()])
    statistic = ((seen - wanted)[frequent] ** 2 / wanted[frequent]).sum()
    if rest[0] >= 1:
        statistic += (rest[1] - rest[0]) ** 2 / rest[0]
    cells = int(frequent.sum()) - 1 + int(rest[0] >= 1)
    assert statistic < cells + 4.3 * (2 * cells) ** 0.5 + 9  # above the 1 - 10^-5 quantile for any number of cells


def test_numbers_are_even_and_of_their_seed_and_place_alone():
    seeds = torch.tensor([stream_seed(seed, number) for seed in range(20) for number in range(50)])
    assert len(seeds.unique()) == 1000
    assert (seeds >= 0).all()
    numbers = torch.stack([uniform(seeds, torch.full_like(seeds, place)) for place in range(100)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert (numbers.flatten().histc(10, 0, 1) / numbers.numel() - 0.1).abs().max() < 0.005
    for one, other in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):  # neighbours are unrelated
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.02
    alone = uniform(seeds[7:8], torch.tensor([3]))
    assert alone == numbers[3, 7]


def test_rounding_at_the_end_of_the_distribution_draws_a_token_that_is_kept(monkeypatch):
    sampler = started([GenerationSettings(do_sample=True, top_k=3)])
    monkeypatch.setattr("llm_qa.inference.sampling.uniform", lambda seeds, counts: torch.ones(1))
    logits = torch.arange(VOCABULARY).float()[None]
    assert sampler.choose(logits, slice(None), torch.zeros(1, dtype=torch.int64)) == VOCABULARY - 3
