"""Synthetic documents with the lengths of the original notebooks' data."""

from __future__ import annotations

import numpy as np

from llm_qa.data.packing import TokenizedPairs

PAIRS = 6440  # of the original notebooks' data
MEDIAN_TOKENS, SPREAD, SHORTEST, LONGEST = 64, 0.55, 20, 400  # of a pair there, roughly log-normal


def synthetic_pairs(vocabulary: int, max_length: int, seed: int) -> TokenizedPairs:
    """PAIRS documents of random tokens with the original data's lengths; the first third of each is the question."""
    random = np.random.default_rng(seed)
    lengths = np.exp(random.normal(np.log(MEDIAN_TOKENS), SPREAD, PAIRS)).clip(SHORTEST, min(LONGEST, max_length))
    lengths = lengths.astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = random.integers(0, vocabulary, starts[-1], dtype=np.int32)
    return TokenizedPairs(tokens, starts, (lengths // 3).astype(np.int32), [""] * PAIRS)
