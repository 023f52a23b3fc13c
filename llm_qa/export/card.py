"""The model card of an exported folder: what it was made from, how it scored, how it is asked."""

from __future__ import annotations

from pathlib import Path

from llm_qa import files
from llm_qa.config.recipe import EMBEDDED_MODEL, Recipe
from llm_qa.data.chat import uses_chat
from llm_qa.data.phrasings import split_words
from llm_qa.data.prompts import show_prompt
from llm_qa.data.references import ANSWER, PASSAGE, QUESTION
from llm_qa.evaluation.evaluations import load_evaluation
from llm_qa.evaluation.metrics.catalogue import MEASURES, is_number
from llm_qa.migrations import read_json
from llm_qa.models.loading import finished_folder, load_run_tokenizer, run_recipe

TITLES = {files.BASE: "base", files.TUNED: "the run", files.MERGED: "these weights"}
NOT_EVALUATED = "The run that it was made from was not evaluated."


def model_card(run_dir: Path, *, split: str = "test") -> str:
    """README.md: base, data, measures of the run on `split` where it was evaluated, prompt, licence."""
    recipe, summary = run_recipe(run_dir), read_json(run_dir / files.TRAINING)
    tokenizer = load_run_tokenizer(finished_folder(run_dir, recipe), recipe)
    base = "the small model that comes with LLM_QA" if recipe.model == EMBEDDED_MODEL else f"`{recipe.model}`"
    header = "" if recipe.model == EMBEDDED_MODEL else f"base_model: {recipe.model}\n"
    if recipe.method == "lora":
        made = (
            f"LoRA of rank {recipe.lora_r}, trained on the base's weights in {recipe.base_precision}, is merged into "
            "the base's own weights as they were before that rounding."
        )
    else:
        made = "All of its weights were trained."
    return f"""---
language: ko
{header}library_name: transformers
pipeline_tag: text-generation
tags:
- question-answering
---

# Korean question answering

Trained from {base} on {summary["pairs"]:,} question-answer pairs of {summary["records"]:,} records for
{summary["steps"]:,} steps ({summary["tokens"]:,} tokens). {made}

{measures_section(run_dir, split)}

It answers this prompt, which its chat template makes of a user's message, and then ends with its eos token:

```text
{show_prompt(tokenizer, "<질문>")}
```
{references_section(recipe, "user" if uses_chat(tokenizer) else "system")}
The licence of the base holds for these weights too. The model also answers what it never learned: check its answers.
"""


def references_section(recipe: Recipe, role: str) -> str:
    """What has to stand before a question, of a run with retrieval; nothing for others.

    `role` is of the message that takes it: the system's for the plain prompt, the user's for a base's chat template.
    """
    if not recipe.retrieval:
        return ""
    by = "BM25 over Kiwi's morphemes"
    if recipe.retrieval_embedder:
        by = (
            f"the cosine of sentence embeddings of {Path(recipe.retrieval_embedder).name}, of which "
            f"`{files.REFERENCE_VECTORS}` holds those of every question, answer and passage in order"
        )
    place = "the system message" if role == "system" else "the user's message, before the question"
    return f"""
It was trained, and measured, with up to {recipe.retrieval} references before each question: the nearest entries of
`{files.REFERENCES}`, in this folder, by {by}. The prompt above is not enough: without them its answers are not those
that were measured. They go into {place}, the nearest last, with an empty line between two:

```text
{QUESTION} <질문 1>
{ANSWER} <답변 1>
```

Where that file also holds passages of documents, one stands there as `{PASSAGE} (<source>): <text>`.
"""


def measures_section(run_dir: Path, split: str) -> str:
    """The measures as a Markdown table, or a sentence that there are none."""
    asked, header, rows = measures(run_dir, split)
    if not rows:
        return NOT_EVALUATED
    lines = [header, ["---"] * len(header), *rows]
    return f"{asked}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def measures(run_dir: Path, split: str = "test") -> tuple[str, list[str], list[list[str]]]:
    """(what was asked, header, rows) of the scores of the run's base, of the run and of its exported weights."""
    evaluations = {label: load_evaluation(run_dir, split, label) for label in (files.BASE, files.TUNED, files.MERGED)}
    found = {TITLES[label]: evaluation for label, evaluation in evaluations.items() if evaluation}
    if not found:
        return "", [], []
    scores = [evaluation.scores for evaluation in found.values()]
    rows = []
    for measure in MEASURES.values():
        values = [of_one["metrics"][measure.key]["value"] for of_one in scores]
        if any(map(is_number, values)):
            rows.append([f"{measure.english} {measure.arrow}".rstrip(), *map(measure.format, values)])
    asked_of = split_words(split, next(iter(found.values())).held_out)
    asked = f"On the {scores[0]['questions']:,} questions of the {asked_of}, {scores[0]['records']:,} records:"
    return asked, ["", *found], rows
