"""One document per row in place of packs, for architectures that would let packed documents attend to each other."""

from __future__ import annotations

from dataclasses import replace

from llm_qa.config.recipe import Recipe
from llm_qa.console import say
from llm_qa.data.packing import PackedDataset
from llm_qa.language import tr


def one_document_a_row(recipe: Recipe, packs: PackedDataset, packs_a_pass: int) -> Recipe:
    """The recipe with pack_length 0 and as many documents per update as its packs would have held on average.

    So an epoch has about as many updates, and the learning rate needs no change. In place of `packs_a_pass` packs, a
    pass of one process has as many rows as take no more tokens when each is padded to the longest document.
    """
    longest = recipe.max_length if recipe.join_questions else int(packs.pairs.lengths.max())
    tokens = packs_a_pass * recipe.pack_length
    documents = packs_a_pass * len(packs.pairs) / len(packs.packs)  # per pass with packs
    rows = max(1, min(tokens // longest, round(documents)))
    passes = max(1, round(documents / rows))  # in place of each pass with packs
    update = recipe.global_batch_size // packs_a_pass * passes * rows
    say(
        tr(
            "one document per row: {update:,} documents per update, {rows:,} per forward pass, in place "
            "of {global_batch_size:,} packs of {pack_length:,} tokens with {documents:.1f} documents each",
            update=update,
            rows=rows,
            global_batch_size=recipe.global_batch_size,
            pack_length=recipe.pack_length,
            documents=documents / packs_a_pass,
        )
    )
    return replace(recipe, pack_length=0, global_batch_size=update, micro_batch_size=rows)
