"""Choosing the next token on the device, each row by settings of its own: the operations of transformers' generate.

Repetition penalty (Keskar et al. 2019, arXiv:1909.05858), temperature, top-k, top-p (Holtzman et al. 2020,
arXiv:1904.09751), then a draw. The draw is made by inverting the cumulative distribution at a number that is a hash of
(seed, place in the answer): it does not depend on which other rows are answered at the same time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from llm_qa.inference.settings import GenerationSettings

STEP, MIX = 0x9E3779B97F4A7C15 - 2**64, ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))  # signed, splitmix64's


def greedy(settings: GenerationSettings) -> bool:
    """Whether the settings take the most probable token as it is."""
    return not settings.do_sample and settings.repetition_penalty == 1.0


def stream_seed(seed: int, number: int) -> int:
    """The seed of the `number`-th answer that is drawn with `seed`."""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # a positive int64


def uniform(seeds: Tensor, counts: Tensor) -> Tensor:
    """A number in [0, 1) of 24 bits for each pair of int64 (rows,): fp32 (rows,), by splitmix64 (Steele et al. 2014)"""
    z = seeds + counts * STEP
    for shift, factor in MIX:
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * factor  # >> of an int64 repeats the sign
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    return (z & 0xFFFFFF).float() * 2.0**-24


class Sampler:
    """The settings of each row of a decoder, as tensors of fixed addresses, so that a CUDA graph can read them."""

    def __init__(self, rows: int, vocabulary: int, device: torch.device):
        self.vocabulary, self.device = vocabulary, device
        self.sampled = torch.zeros(rows, dtype=torch.bool, device=device)
        self.temperature, self.top_p, self.penalty = (torch.ones(rows, device=device) for _ in range(3))
        self.top_k, self.seeds = (torch.ones(rows, dtype=torch.int64, device=device) for _ in range(2))
        self.seen = torch.zeros(rows, vocabulary, dtype=torch.bool, device=device)  # tokens of prompt and answer so far
        self.greedy_rows = [True] * rows

    def start(self, rows: Sequence[int], prompts: Sequence[list[int]], settings: Sequence[GenerationSettings], numbers):
        """Set what rows that begin an answer are sampled with; `numbers` tell apart answers of one seed."""

        def tensor(values, dtype=torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self.device)

        places = tensor(rows, torch.int64)
        self.sampled[places] = tensor([s.do_sample for s in settings], torch.bool)
        self.temperature[places] = tensor([s.temperature if s.do_sample else 1.0 for s in settings])
        self.top_p[places] = tensor([s.top_p if s.top_p < 1 else torch.inf for s in settings])
        self.top_k[places] = tensor([min(s.top_k or self.vocabulary, self.vocabulary) for s in settings], torch.int64)
        self.penalty[places] = tensor([s.repetition_penalty for s in settings])
        seeds = [stream_seed(s.seed, number) for s, number in zip(settings, numbers, strict=True)]
        self.seeds[places] = tensor(seeds, torch.int64)
        for row, prompt, own in zip(rows, prompts, settings, strict=True):
            self.greedy_rows[row] = greedy(own)
            self.seen[row] = False
            self.seen[row, tensor(prompt, torch.int64)] = True

    def distribution(self, logits: Tensor, rows: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """(scores, probabilities, tokens), all (n, vocabulary), of logits (n, vocabulary) of `rows` (n,).

        Scores are logits after the penalty. Probabilities, not normalised and 0 for what top-k and top-p leave out,
        are in falling order, and `tokens` says whose they are.
        """
        scores, penalty = logits.float(), self.penalty[rows, None]
        scores = torch.where(self.seen[rows], torch.where(scores < 0, scores * penalty, scores / penalty), scores)
        ordered, tokens = (scores / self.temperature[rows, None]).sort(dim=-1, descending=True)
        least = ordered.gather(-1, self.top_k[rows, None] - 1)
        kept = ordered.masked_fill(ordered < least, -torch.inf).softmax(
            -1
        )  # equals of the k-th stay, as in transformers
        before = kept.cumsum(-1) - kept
        return scores, kept.masked_fill(before >= self.top_p[rows, None], 0.0), tokens

    def choose(self, logits: Tensor, rows: Tensor | slice, counts: Tensor) -> Tensor:
        """The next token, int64 (n,), of `rows` (n,) that have `counts` (n,) tokens of their answers already."""
        scores, probabilities, tokens = self.distribution(logits, rows)
        sums = probabilities.cumsum(-1)
        drawn = (sums <= uniform(self.seeds[rows], counts)[:, None] * sums[:, -1:]).sum(-1)
        drawn = torch.minimum(drawn, (probabilities > 0).sum(-1) - 1)  # the last one where rounding leads beyond
        return torch.where(self.sampled[rows], tokens.gather(-1, drawn[:, None])[:, 0], scores.argmax(-1))

    def mark(self, tokens: Tensor) -> None:
        """Note the tokens (rows,) that all rows have chosen, for the repetition penalty."""
        self.seen.scatter_(1, tokens[:, None], True)
