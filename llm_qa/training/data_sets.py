"""The data of a run: its records, their tokenised pairs, the packs of them that are trained on, and what is said of it.

A run calls `open_records`, `tokenize_training_pairs`, `keep_documents_apart` and `build_data_sets`, in this order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import TrainingArguments

from llm_qa import files
from llm_qa.config.recipe import Recipe
from llm_qa.console import counted, is_main_process, say
from llm_qa.data.documents import load_passages
from llm_qa.data.joined_packs import JoinedDataset, joining_of
from llm_qa.data.packing import Encode, PackedDataset, TokenizedPairs, TooLong, encode_as_given, tokenize_records
from llm_qa.data.preparation import prepared_folder
from llm_qa.data.preparation_options import PreparationOptions
from llm_qa.data.prompts import show_document
from llm_qa.data.redrawn_packs import RedrawnDataset
from llm_qa.data.reference_packs import ReferencesDataset
from llm_qa.data.references import References
from llm_qa.data.splits import Split, open_split
from llm_qa.language import tr
from llm_qa.models.isolation import attention_of
from llm_qa.models.references import keep_references, references_of
from llm_qa.models.registry import model_config
from llm_qa.planning.figures import few_updates
from llm_qa.training.out_of_memory import memory_for_loading, with_stored_micro_batch
from llm_qa.training.rows import one_document_a_row
from llm_qa.training.strategy import Strategy, micro_batch_size


@dataclass(frozen=True)
class RunRecords:
    """The prepared data of a run, before it is tokenised; `validation` may be empty.

    `references` are what its questions are put after, of a recipe with retrieval.
    """

    folder: Path
    train: Split
    validation: Split
    references: References | None = None

    @property
    def encode(self) -> Encode:
        """What makes documents of records (`tokenize_records`)."""
        return self.references.encode if self.references else encode_as_given

    def sha256(self) -> str:
        """What the run signature knows the data by: the hash of its manifest, which holds those of its files."""
        return files.sha256_file(self.folder / files.MANIFEST)


@dataclass(frozen=True)
class DataSets:
    """What Trainer is given, and what it was made of; `validation` is None where the data has no such records."""

    num_records: int  # of the training split
    pairs: TokenizedPairs  # of the training split
    train: PackedDataset
    validation: PackedDataset | None


def open_records(data: list[str] | None, preparation: PreparationOptions) -> RunRecords:
    """Open the prepared folder that `--data` names, or the one that is made of its raw files first."""
    folder = prepared_folder(data, preparation)
    return RunRecords(folder, open_split(folder, "train"), open_split(folder, "validation", may_be_empty=True))


def with_references(records: RunRecords, recipe: Recipe, run_dir: Path) -> RunRecords:
    """The same records, encoded with references where the recipe has retrieval; these are kept in the run folder."""
    passages = load_passages(records.folder)
    if not recipe.retrieval:
        if passages:
            count = counted(len(passages), "passage")
            say(
                tr(
                    "note: {count} of documents in {folder} are not read, as retrieval is 0",
                    count=count,
                    folder=records.folder,
                )
            )
        return records
    references = references_of(list(records.train), recipe, passages)
    if is_main_process():
        keep_references(run_dir, references)
    return replace(records, references=references)


def tokenize_training_pairs(tokenizer, records: RunRecords, recipe: Recipe, run_dir: Path) -> TokenizedPairs:
    """Tokenise the training records; pairs longer than `max_length` tokens are set aside and reported."""
    pairs, too_long = tokenize_records(tokenizer, records.train, recipe.max_length, encode=records.encode)
    report_too_long(run_dir, too_long, recipe.max_length)
    return pairs


def report_too_long(run_dir: Path, too_long: list[TooLong], max_length: int) -> None:
    """Say how many pairs do not fit, and list them in the run folder."""
    path = run_dir / files.REJECTED
    if is_main_process() and too_long:
        files.write_jsonl(path, [{**vars(pair), "reason": f"longer than max_length {max_length}"} for pair in too_long])
    if too_long:
        say(
            tr(
                "{count:,} pairs are longer than max_length {max_length} tokens and set aside, listed in {path}",
                count=len(too_long),
                max_length=max_length,
                path=path,
            )
        )


def keep_documents_apart(
    recipe: Recipe, pairs: TokenizedPairs, model: str, strategy: Strategy, run_dir: Path
) -> Recipe:
    """The recipe; one document a row where packed documents would see each other under `model`'s architecture.

    `model` is a folder or a hub name, of which the config alone is read. With other rows another micro-batch may have
    been found to fit, which is taken from the run folder.
    """
    with memory_for_loading(recipe):
        attention = attention_of(model_config(model))
    if attention.usual:  # load_base reports anything else
        say(attention.report)
    if attention.isolates or not recipe.pack_length:
        return recipe
    packs = pack(pairs, recipe, recipe.global_batch_size)
    recipe = one_document_a_row(recipe, packs, micro_batch_size(recipe, strategy.processes))
    return with_stored_micro_batch(recipe, run_dir)


def pack(pairs: TokenizedPairs, recipe: Recipe, batch_size: int) -> PackedDataset:
    """The pairs as the recipe packs them, for batches of `batch_size` packs."""
    return PackedDataset(pairs, recipe.pack_length, recipe.loss_on, recipe.seed, batch_size)


def build_data_sets(
    tokenizer, records: RunRecords, pairs: TokenizedPairs, recipe: Recipe, strategy: Strategy
) -> DataSets:
    """Pack the training pairs, and tokenise and pack the validation records."""
    train, validation = pack(pairs, recipe, recipe.global_batch_size), None
    how = (recipe.pack_length, recipe.loss_on, recipe.seed, recipe.global_batch_size)
    references, joining = records.references, None
    if recipe.join_questions:
        of_recipe = (recipe.join_questions, recipe.max_length, references)
        joining = joining_of(tokenizer, records.train, *of_recipe)
    if references and recipe.retrieval_hit < 1:
        triples = [(record, *pair) for record in records.train for pair in record.pairs()]
        train = ReferencesDataset(pairs, *how, triples, references, tokenizer, recipe.max_length, joining)
        report_drawn(train, recipe)
    elif joining:
        train = JoinedDataset(pairs, *how, joining)
        report_drawn(train, recipe)
    if records.validation:
        validation_pairs, _ = tokenize_records(
            tokenizer, records.validation, recipe.max_length, encode=records.encode, what="validation"
        )
        validation = pack(validation_pairs, recipe, micro_batch_size(recipe, strategy.processes) * strategy.processes)
    return DataSets(len(records.train), pairs, train, validation)


def report_drawn(train: RedrawnDataset, recipe: Recipe) -> None:
    """Say how many documents of the first epoch were drawn for what, and why where fewer are joined than asked for."""
    documents = len(train.packs.documents)
    if others := train.num_drawn - train.num_joined:
        say(
            tr(
                "retrieval_hit: {drawn:,} of {all:,} documents of the first epoch have references at random, drawn "
                "anew each epoch",
                drawn=others,
                all=documents,
            )
        )
    if not recipe.join_questions:
        return
    say(
        tr(
            "join_questions: {drawn:,} of {all:,} documents of the first epoch ask two questions, drawn anew each",
            drawn=train.num_joined,
            all=documents,
        )
    )
    if train.joined_share < 0.9 * recipe.join_questions:
        say(
            tr(
                "note: they are {joined_share:.0%} and not {join_questions:.0%}: others would be longer "
                "than max_length {max_length} tokens, share a text, or have a passage",
                joined_share=train.joined_share,
                join_questions=recipe.join_questions,
                max_length=recipe.max_length,
            )
        )


def count_updates(arguments: TrainingArguments, train: PackedDataset, recipe: Recipe) -> tuple[int, float]:
    """(updates, epochs) of the whole training, as Trainer counts them."""
    of_epoch = max(1, math.ceil(len(train) / recipe.global_batch_size))
    if arguments.max_steps > 0:
        return arguments.max_steps, arguments.max_steps / of_epoch
    return math.ceil(of_epoch * arguments.num_train_epochs), arguments.num_train_epochs


def warn_of_few_updates(arguments: TrainingArguments, train: PackedDataset, recipe: Recipe) -> None:
    """Say it where the whole training has too few updates to learn from, with what to change."""
    updates, epochs = count_updates(arguments, train, recipe)
    warms_up = bool(arguments.warmup_steps)
    if few := few_updates(updates, epochs, recipe.global_batch_size, warms_up=warms_up):
        say(tr("warning: {few}", few=few))


def report_data(tokenizer, records: RunRecords, data: DataSets, recipe: Recipe) -> str:
    """Two lines: how much there is to train on, and one example with its label tokens marked."""
    record = next(iter(records.train))
    (example,) = records.encode(tokenizer, [(record, record.questions[0], record.answers[0])], recipe.max_length)
    lines = [
        tr("prepared data: {out}", out=records.folder),
        tr(
            "data: {records:,} records, {pairs:,} pairs, {tokens:,} tokens in {packs:,} packs, {full:.1%} full",
            records=data.num_records,
            pairs=len(data.pairs),
            tokens=len(data.pairs.tokens),
            packs=len(data.train.packs),
            full=data.train.efficiency,
        ),
        tr("one example, what is trained between ⟦ and ⟧:"),
        show_document(tokenizer, example, recipe.loss_on),
    ]
    return "\n".join(lines)
