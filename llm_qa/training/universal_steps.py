"""The update count of each optimizer state after DeepSpeed has read a universal checkpoint.

DeepSpeed gives every group of parameters the same `step` tensor, where it was saved
(https://github.com/deepspeedai/DeepSpeed/blob/v0.19.8/deepspeed/runtime/zero/stage3.py,
`load_hp_checkpoint_state_from_checkpoint_dir_stage3`). torch's optimizers count up each of them in place, so that with
several groups every update would count several times and Adam would correct its moments for the wrong number of
updates; and the fused ones on a GPU fail on a count that lies on the CPU.
"""

from __future__ import annotations

import torch
from transformers import TrainerCallback


def separate_steps(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter's state a `step` tensor of its own, on the device on which torch's optimizer wants it.

    That is the parameter's for a fused or capturable optimizer, else the CPU (torch.optim.Adam._init_group).
    """
    with_parameter = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    for parameter, state in optimizer.state.items():  # DeepSpeed leaves the groups' own lists of parameters empty
        if isinstance(state.get("step"), torch.Tensor):
            device = parameter.device if with_parameter else torch.device("cpu")
            state["step"] = state["step"].detach().clone().to(device, torch.float32)


class SeparateSteps(TrainerCallback):
    """Calls `separate_steps` when training begins, which is after the checkpoint was read."""

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        """`optimizer` is accelerate's wrapper of DeepSpeed's, around torch's own."""
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        separate_steps(optimizer)
