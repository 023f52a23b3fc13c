"""scripts/train.py as it is, with a second GPU that has room for one sequence a pass from the fourth step on."""

import os
import sys
from pathlib import Path

import torch

from llm_qa.console import run_script
from llm_qa.training.trainer import PackTrainer

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import train

step = PackTrainer.training_step


def training_step(self, model, inputs, *rest, **more):
    """One step, or what CUDA says when it does not fit."""
    if os.environ["RANK"] == "1" and len(inputs["input_ids"]) > 1 and self.state.global_step >= 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 is full.")
    return step(self, model, inputs, *rest, **more)


if __name__ == "__main__":
    PackTrainer.training_step = training_step
    run_script(train.main, speaks=train.first_to_say)
