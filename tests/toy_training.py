"""A training of milliseconds with the real Trainer and the real saving: a line through random points, with dropout."""

import faulthandler
import gc
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainingArguments

from llm_qa.training.callbacks.logging import StepLog
from llm_qa.training.checkpoint.resume import newest_checkpoint
from llm_qa.training.checkpoint.trainer_hooks import CheckpointingTrainer, SavingOptions

STEPS = 6
HANGS_AFTER_SECONDS = 60  # a child that does shows where, and ends


class Line(torch.nn.Module):
    """y = w x with dropout on x: what it learns shows whether the random numbers go on where they were."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = torch.nn.Linear(4, 1)

    def forward(self, x, labels):
        guess = self.line(torch.nn.functional.dropout(x, 0.2, self.training))[:, 0]
        return {"loss": ((guess - labels) ** 2).mean()}


class Points(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        x = torch.randn(4, generator=torch.Generator().manual_seed(index))
        return {"x": x, "labels": x.sum()}


def make_trainer(
    run: Path, callbacks: Sequence[TrainerCallback] = (), saving: SavingOptions | None = None, **changes
) -> CheckpointingTrainer:
    """A trainer that saves every second step, keeps two checkpoints and logs every third step."""
    values = {"max_steps": STEPS, "save_steps": 2, "logging_steps": 3, "save_total_limit": 2, "learning_rate": 0.1}
    values |= {"per_device_train_batch_size": 2, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(output_dir=str(run / "checkpoints"), **{**values, **changes})
    run.mkdir(parents=True, exist_ok=True)
    trainer = CheckpointingTrainer(
        model=Line(),
        args=arguments,
        train_dataset=Points(),
        eval_dataset=Points(),
        callbacks=[StepLog(run), *callbacks],
        saving=saving,
    )
    trainer.patience_seconds = 60.0  # its steps are so short that saves would give way by chance
    return trainer


def train(run: Path, **changes) -> CheckpointingTrainer:
    """Start or go on with a run, as scripts/train.py does."""
    trainer = make_trainer(run, **changes)
    checkpoint = newest_checkpoint(run)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    torch.save(trainer.model.state_dict(), run / "final.pt")
    return trainer


def in_a_child(work) -> int:
    """Do `work` in a forked process; returns its exit status as the shell counts it (137 after SIGKILL)."""
    return status_of(start_child(work))


def start_child(work) -> int:
    """Fork a process that does `work`; returns its id."""
    import deepspeed  # noqa: F401  accelerate would import it in every child

    gc.freeze()  # or every child's first collection walks through all that is imported
    child = os.fork()
    if child == 0:
        code = 1
        tqdm.set_lock(threading.RLock())  # its own is one for all forks: who is killed with it stops the others
        faulthandler.dump_traceback_later(HANGS_AFTER_SECONDS, exit=True, file=sys.__stderr__)
        try:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def status_of(child: int) -> int:
    """Wait for a child."""
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status) % 256 if not os.WIFSIGNALED(status) else 128 + os.WTERMSIG(status)
