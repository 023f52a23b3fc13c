"""Stores the loss since the last logged step in each checkpoint, for the first logged line after a resume."""

from __future__ import annotations

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from llm_qa.distributed import gather_over_ranks
from llm_qa.training.internals import loss_since_log, restore_loss_since_log


class LossSoFar(TrainerCallback, ExportableState):
    """Saves the sum of losses since the last logged step, which Trainer does not save.

    Without it the first line after a resume would average only the steps after it. There is one number per rank; the
    logged loss is their mean.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.by_rank: list[float] = []
        self.last_logged = 0

    def state(self) -> dict:
        """The state that Trainer saves with each checkpoint."""
        return {"args": {}, "attributes": {"by_rank": self.by_rank, "last_logged": self.last_logged}}

    def remember(self) -> None:
        """Take the numbers from the trainer; every rank must call it."""
        loss, self.last_logged = loss_since_log(self.trainer)
        self.by_rank = gather_over_ranks(loss, self.trainer.args.device)

    def on_train_begin(self, args, state, control, **kwargs):
        """Restore the numbers; with another number of processes each gets their mean, which keeps the logged loss."""
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        if not saved or not saved["attributes"]["by_rank"]:
            return
        by_rank = saved["attributes"]["by_rank"]
        same = len(by_rank) == args.world_size
        loss = by_rank[args.process_index] if same else sum(by_rank) / len(by_rank)
        restore_loss_since_log(self.trainer, loss, saved["attributes"]["last_logged"])
