"""Settings of generation; importing them loads no large library."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llm_qa import files
from llm_qa.console import UserError, say
from llm_qa.language import later

SHORTEST_LIMIT = 128  # the default token limit of an answer is at least this

MAX_NEW_TOKENS_HELP = later(
    "longest answer in tokens (default: enough for 99 in 100 of the run's training answers, at least 128; with "
    "--sampling original 300)"
)
CANDIDATES_HELP = later(
    "draw N answers to a question and keep the one closest to the others by chrF++ (1: the greedy answer)"
)

# transformers' generate; the project's own for GPT-NeoX, with a fixed cache and CUDA graphs; static where it is valid
DECODERS = ("auto", "static", "plain")
DECODER_HELP = later(
    "static: GPT-NeoX, a fixed cache and CUDA graphs; plain: transformers; auto: static on a GPU if valid"
)


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of generation. The default is greedy; lengths are in tokens."""

    max_new_tokens: int = SHORTEST_LIMIT
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    candidates: int = 1  # answers drawn for a question, of which one is kept (`candidates.py`)
    embedder: str = ""  # whose sentence embeddings say which one; by chrF++ without

    def arguments(self) -> dict:
        """What `model.generate` is given; sampling's numbers only where it samples."""
        values: dict[str, int | float] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.do_sample}
        if self.repetition_penalty != 1.0:
            values["repetition_penalty"] = self.repetition_penalty
        if self.do_sample:
            values |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return values

    def to_dict(self) -> dict:
        """For scores.json; of candidates only where there are several, so that earlier answers are known again."""
        of_one = {"candidates": 1, "embedder": ""}
        return {key: value for key, value in asdict(self).items() if value != of_one.get(key)}


# The original notebooks generated with these; their max_length of 300 included the prompt.
ORIGINAL_SAMPLING = GenerationSettings(
    max_new_tokens=300, do_sample=True, temperature=0.9, top_k=1, top_p=0.9, repetition_penalty=1.2
)


# What several candidates are drawn with: close to the most probable answer, and still different.
CANDIDATE_SAMPLING = GenerationSettings(do_sample=True, temperature=0.7, top_p=0.95)


def named_settings(
    sampling: str,
    max_new_tokens: int | None = None,
    *,
    seed: int = 0,
    run: Path | None = None,
    candidates: int = 1,
    embedder: str | None = None,
) -> GenerationSettings:
    """Settings of --sampling greedy or original; --max-new-tokens, where given, overrides the length of both.

    The default length is the notebooks' own for original, and for greedy `answer_limit` of the `run`. Several
    `candidates` are drawn in place of the greedy answer, and one is chosen by `embedder` where it is given; UserError
    with original, which would draw the same each time.
    """
    settings = ORIGINAL_SAMPLING if sampling == "original" else GenerationSettings()
    if candidates > 1:
        if sampling == "original":
            raise UserError(
                f"--candidates {candidates} with --sampling original would draw {candidates} equal answers, as that "
                "always takes the most probable token (top_k 1): leave --sampling out."
            )
        settings = replace(CANDIDATE_SAMPLING, candidates=candidates, embedder=embedder or "")
        say(
            f"--candidates {candidates}: in place of the greedy answer, answers are drawn at temperature "
            f"{settings.temperature:g}, top-p {settings.top_p:g}, and the one closest to the others is kept"
            + (f", by the cosine of {embedder}" if embedder else "")
        )
    if max_new_tokens is None:
        max_new_tokens = settings.max_new_tokens if sampling == "original" or run is None else answer_limit(run)
    return replace(settings, max_new_tokens=max_new_tokens, seed=seed)


def answer_limit(run: Path) -> int:
    """The default token limit of a run's answers: the 99th percentile of its training answers, at least SHORTEST_LIMIT.

    Prints the limit and its source. Training writes the percentile, end token included, into training.json.
    """
    if not (run / files.RECIPE).is_file():
        return SHORTEST_LIMIT  # not a run, which is reported when it is loaded
    training = files.read_json(run / files.TRAINING) if (run / files.TRAINING).is_file() else {}
    longest = training.get(files.ANSWER_TOKENS)
    if not isinstance(longest, int):
        say(f"--max-new-tokens {SHORTEST_LIMIT}: {run} does not contain the length of its training answers")
        return SHORTEST_LIMIT
    limit = max(SHORTEST_LIMIT, longest)
    say(f"--max-new-tokens {limit}: 99% of the training answers of {run} have at most {longest:,} tokens")
    return limit
