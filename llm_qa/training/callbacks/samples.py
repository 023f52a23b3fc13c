"""A few validation questions, answered after each validation, so that people see what the model has learned.

Answers are greedy and draw no random number, and the model is left in the mode that it was in: the training is the same
with them and without.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainingArguments

from llm_qa import files
from llm_qa.config.recipe import Recipe
from llm_qa.console import is_main_process, say
from llm_qa.inference.generate import generate_batch, to_answer
from llm_qa.inference.settings import GenerationSettings
from llm_qa.language import tr
from llm_qa.models.loading import end_tokens
from llm_qa.training.callbacks.tracking import send_text
from llm_qa.training.data_sets import RunRecords
from llm_qa.training.log_file import LogFile
from llm_qa.training.strategy import Strategy
from llm_qa.widths import shortened

SETTINGS = GenerationSettings(max_new_tokens=48)
MOST_OF_TIME = 0.05  # share of a run's time after which a validation goes without answers, but for the first and last
QUESTION_COLUMNS = 30  # of a line on the screen


@dataclass(frozen=True)
class Sample:
    """A validation question, its first right answer, and the token ids of the prompt that asks it."""

    question: str
    reference: str
    prompt: list[int]


def choose_samples(tokenizer, records: RunRecords, recipe: Recipe, strategy: Strategy) -> list[Sample]:
    """The first question of `recipe.sample_answers` records, spread evenly over the validation records.

    None under ZeRO-3, which says so.
    """
    validation = records.validation
    count = min(recipe.sample_answers, len(validation))
    if count and strategy.zero_stage == 3:
        say(tr("no sample answers: under ZeRO-3 no process has the whole model that generates them"))
        return []
    wanted = {number * len(validation) // count for number in range(count)}
    chosen = [record for number, record in enumerate(validation) if number in wanted]
    documents = records.encode(tokenizer, [(r, r.questions[0], r.answers[0]) for r in chosen], recipe.max_length)
    return [
        Sample(record.questions[0], record.answers[0], list(document.input_ids[: document.prompt_length]))
        for record, document in zip(chosen, documents, strict=True)
    ]


class SampleAnswers(TrainerCallback):
    """Answers samples after a validation: a line each on the screen and in samples.jsonl, and a text in trackers.

    The main process answers alone. Where answers have taken more than MOST_OF_TIME of the time so far, a validation
    goes without, so that a short training of a large model is not longer by much; the first and the last have them.
    """

    def __init__(self, run_dir: Path, tokenizer, samples: Sequence[Sample], trackers: Mapping[str, TrainerCallback]):
        self.file = LogFile(Path(run_dir) / files.SAMPLES)
        self.tokenizer, self.samples, self.trackers = tokenizer, samples, trackers
        self.answers_given = is_main_process() and bool(samples)
        self.seconds = 0.0  # that answers have taken

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock; cut the file back to the step that training goes on from."""
        self.began = time.perf_counter()
        if self.answers_given:
            self.file.cut_back(state.global_step)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        """Answer the samples where it is their turn."""
        allowed = MOST_OF_TIME * (time.perf_counter() - self.began)
        if not self.answers_given or (self.seconds > allowed and state.global_step < state.max_steps):
            return
        began = time.perf_counter()
        try:
            answers = self._answers(args, model)
        except torch.OutOfMemoryError:
            self.answers_given = False
            say(tr("no sample answers from here on: the GPU has no memory left to generate them"))
            return
        self.seconds += time.perf_counter() - began
        for sample, answer in zip(self.samples, answers, strict=True):
            line = {"question": sample.question, "reference": sample.reference, "answer": answer.text}
            self.file.append({"step": state.global_step, **line, "stopped": answer.stopped})
            say(as_text(sample.question, answer.text + ("" if answer.stopped else " …")))
        told = [f"{s.question} → {a.text} ({s.reference})" for s, a in zip(self.samples, answers, strict=True)]
        send_text(self.trackers, args, state, control, {f"sample_{n}": text for n, text in enumerate(told, 1)})

    def _answers(self, args: TrainingArguments, model):
        dtype = torch.bfloat16 if args.bf16 else torch.float16
        mixed = args.bf16 or args.fp16  # Trainer wraps the whole model's forward, which generate does not call
        was_training = model.training
        model.eval()
        try:
            with torch.autocast(args.device.type, dtype) if mixed else contextlib.nullcontext():
                rows = generate_batch(model, self.tokenizer, [sample.prompt for sample in self.samples], SETTINGS)
        finally:
            model.train(was_training)
        ends = end_tokens(model, self.tokenizer)
        return [to_answer(self.tokenizer, row, ends) for row in rows]


def as_text(question: str, answer: str) -> str:
    """One line of the screen's width."""
    asked = tr("sample: {question} →", question=shortened(question, QUESTION_COLUMNS))
    return shortened(f"{asked} {answer}")
