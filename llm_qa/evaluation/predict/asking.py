"""Finds a model to ask without reading its weights, and answers a file of questions with it in batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from llm_qa.config.recipe import Recipe, make_recipe
from llm_qa.console import StoppedEarly, UserError, say
from llm_qa.data.chat import choose_prompt
from llm_qa.data.documents import load_passages
from llm_qa.data.plain_prompt import Context, Questions
from llm_qa.data.references import References, Retrieval, named
from llm_qa.data.splits import load_split
from llm_qa.evaluation.predict.answer_key import answers_key
from llm_qa.evaluation.predict.predictions import answer_questions
from llm_qa.evaluation.predict.run_data import training_folder
from llm_qa.inference.decoders import build_decoder, choose_decoder
from llm_qa.inference.fitting import fit_questions
from llm_qa.inference.generate import context_length
from llm_qa.inference.settings import GenerationSettings
from llm_qa.inference.static_decoder import StaticDecoder
from llm_qa.models.loading import (
    base_of_run,
    finished_folder,
    load_base,
    load_run,
    load_run_tokenizer,
    load_tokenizer,
    run_recipe,
)
from llm_qa.models.precision import Precision, gpu_capability, resolve_precision
from llm_qa.models.references import references_of_run
from llm_qa.models.registry import model_config


@dataclass(frozen=True)
class Source:
    """A run, or a plain model (`run` is None): folders (or hub ids) of weights and tokenizer, config, precision.

    `decoder` is what answers: plain or static.
    """

    run: Path | None
    recipe: Recipe
    base: str  # the untuned weights
    tokenizer: Path | str
    config: PretrainedConfig
    precision: Precision
    decoder: str
    references: References | None = None

    def fit(self, questions: Questions, settings: GenerationSettings, tokenizer=None) -> list[tuple[str, Context]]:
        """The questions with the run's references, cut to what fits; UserError where one is too long by itself."""
        questions = [(question, self.with_references(question, context)) for question, context in questions]
        return fit_questions(tokenizer or self.load_tokenizer(), self.config, questions, settings)

    def with_references(self, question: str, context: Context) -> Context:
        """The context with the run's references for a question before it; as it is for a run without retrieval."""
        return self.references.asked([(question, context)])[0][1] if self.references else context

    def references_in(self, question: str, context: Context) -> list[str]:
        """Names of the references that a question was put after, the nearest first: files and training records."""
        if not self.references:
            return []
        return named(self.references.nearest(question, self.references.retrieval.references), context)

    @property
    def weights(self) -> list[Path | str]:
        """Folders of the model's weights: base and adapter, or trained weights, or a plain model alone."""
        if self.run is None:
            return [self.base]
        return [self.base, self.tokenizer] if self.recipe.method == "lora" else [self.tokenizer]

    def load(self) -> tuple[Any, Any]:
        """The model, ready to answer, and its tokenizer."""
        if self.run is not None:
            return load_run(self.run)
        return load_base(self.base, self.precision).eval(), self.load_tokenizer()

    def load_with_decoder(self, rows: int) -> tuple[Any, Any, StaticDecoder | None]:
        """The same, and the decoder for `rows` answers as long as the context; None where transformers answers."""
        model, tokenizer = self.load()
        if self.decoder != "static":
            return model, tokenizer, None
        return model, tokenizer, build_decoder(model, tokenizer, rows=rows, context=context_length(self.config))

    def load_tokenizer(self) -> Any:
        """The tokenizer, with the prompt format of the run; a plain model is asked in its own."""
        if self.run is not None:
            return load_run_tokenizer(self.tokenizer, self.recipe)
        tokenizer = load_tokenizer(self.base)
        choose_prompt(tokenizer, "auto")
        return tokenizer


def find_source(
    *,
    run: Path | None = None,
    model: str = "",
    base_precision: str = "16bit",
    decoder: str = "auto",
) -> Source:
    """The Source of a run, or of a plain model in `base_precision`; no weights are read.

    Raises UserError where it is not a model, its run is not finished, or `decoder` (of DECODERS) does not support it.
    """
    recipe = run_recipe(run) if run else make_recipe({"model": model, "base_precision": base_precision}, source="model")
    base = base_of_run(run, recipe) if run else model
    config = model_config(base)
    decoder = choose_decoder(decoder, config)
    tokenizer = finished_folder(run, recipe) if run else model
    precision = resolve_precision(recipe, gpu_capability())
    references = references_of_run(run, recipe) if run else None
    return Source(run, recipe, base, tokenizer, config, precision, decoder, references)


def asked_with_references(source: Source, data_dir: Path, count: int) -> Source:
    """A run that was trained without references, asked with `count` of its training records and documents' passages.

    UserError for a run that was trained with references, and where the data that it was trained on is gone.
    """
    assert source.run
    if source.recipe.retrieval:
        raise UserError(
            f"--retrieval {count}: {source.run} was trained with retrieval {source.recipe.retrieval} and is always "
            "asked so, its base too: leave --retrieval out."
        )
    folder = training_folder(source.run, data_dir)
    if folder is None:
        raise UserError(
            f"--retrieval {count} puts training records before each question, and the data that {source.run} was "
            "trained on is missing or changed: put it back, or leave --retrieval out."
        )
    retrieval = Retrieval(count, 1.0, source.recipe.seed)
    return replace(source, references=References(load_split(folder, "train"), retrieval, load_passages(folder)))


def answer_file(
    source: Source,
    questions: Questions,
    settings: GenerationSettings,
    *,
    batch_size: int,
    part: Path,
) -> list[str]:
    """The answers to (question, context) pairs, in their order. Finished batches are kept in `part`.0.part.

    Delete it with `delete_partial_results(part)` when the answers are written. Ctrl-C raises StoppedEarly; a question
    too long for the model raises UserError before any weight is read.
    """
    asked = source.fit(questions, settings)
    how = {**settings.to_dict(), "batch_size": batch_size, "decoder": source.decoder}
    key = answers_key(asked, source.weights, source.tokenizer, source.precision, how)
    try:
        model, tokenizer = source.load()
        work = answer_questions(
            model, tokenizer, asked, settings, batch_size=batch_size, part=part, key=key, decoder=source.decoder
        )
        answers = work.values
    except KeyboardInterrupt:
        raise StoppedEarly(
            f"stopped: every batch of answers so far is kept in {part}.0.part, and the same command goes on"
        ) from None
    if cut := sum(not answer["stopped"] for answer in answers):
        say(f"{cut:,} of {len(answers):,} answers were cut after {settings.max_new_tokens:,} tokens (--max-new-tokens)")
    return [answer["text"] for answer in answers]
