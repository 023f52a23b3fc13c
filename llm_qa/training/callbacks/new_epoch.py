"""Tells the training set which epoch begins, for sets that are drawn anew every epoch."""

from __future__ import annotations

from transformers import TrainerCallback

from llm_qa.data.redrawn_packs import RedrawnDataset


class DrawEpoch(TrainerCallback):
    """Draws the epoch's documents before Trainer reads the first, also where a run goes on in the middle of one.

    The epoch is counted in updates, which are whole numbers; `updates_per_epoch` is the number in every epoch.
    """

    def __init__(self, train_set: RedrawnDataset, updates_per_epoch: int):
        self.train_set, self.updates_per_epoch = train_set, updates_per_epoch

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Draw the documents of the epoch that the next update belongs to."""
        self.train_set.set_epoch(state.global_step // self.updates_per_epoch)
