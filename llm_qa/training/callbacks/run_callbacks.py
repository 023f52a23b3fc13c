"""All callbacks of a run by name, and the order in which Trainer has to call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainerCallback

from llm_qa.config.recipe import Recipe
from llm_qa.data.packing import PackedDataset
from llm_qa.data.redrawn_packs import RedrawnDataset
from llm_qa.planning import this_gpu
from llm_qa.planning.figures import Figures
from llm_qa.training.callbacks.best import BestCheckpoint
from llm_qa.training.callbacks.energy import EnergyUsed
from llm_qa.training.callbacks.logging import RealTokens, StepLog
from llm_qa.training.callbacks.new_epoch import DrawEpoch
from llm_qa.training.callbacks.non_finite import StopOnNonFinite
from llm_qa.training.callbacks.samples import SampleAnswers
from llm_qa.training.callbacks.stopping import StopInTime
from llm_qa.training.universal_steps import SeparateSteps


@dataclass(frozen=True)
class RunCallbacks:
    """The callbacks of a run; those that are read after training are found here by name."""

    stop: StopInTime
    tokens: RealTokens
    log: StepLog
    energy: EnergyUsed
    non_finite: StopOnNonFinite
    best: BestCheckpoint
    draw_epoch: DrawEpoch | None  # of a training set that is drawn anew every epoch
    separate_steps: SeparateSteps | None  # of a run that goes on from a universal checkpoint
    samples: SampleAnswers | None = None
    trackers: Mapping[str, TrainerCallback] = field(default_factory=dict)  # by the names of --report-to

    def in_order(self) -> list[TrainerCallback]:
        """The order in which Trainer calls them at every event.

        StopInTime is the first, as it may ask for a save at the end of a step: RealTokens and StopOnNonFinite move
        what they have on the GPU to the CPU only at a step that is logged, validated or saved, and would miss it.
        RealTokens comes before StepLog, which logs the tokens that it counts and adds speed and memory to what trackers
        get, and BestCheckpoint before SampleAnswers, which always answer at the last step. The others are independent.
        """
        own = [callback for callback in (self.draw_epoch, self.separate_steps, self.samples) if callback]
        return [
            self.stop,
            self.tokens,
            self.log,
            self.energy,
            self.non_finite,
            self.best,
            *own,
            *self.trackers.values(),
        ]


def build_callbacks(
    recipe: Recipe,
    run_dir: Path,
    train_set: PackedDataset,
    linear_parameters: int,
    *,
    seconds_to_save: Callable[[], float],
    from_universal: bool = False,
    predicted: Figures | None = None,
    samples: SampleAnswers | None = None,
    trackers: Mapping[str, TrainerCallback] | None = None,
) -> RunCallbacks:
    """The callbacks of a recipe's run.

    `linear_parameters` of the base are what FLOPs are counted by; `seconds_to_save` tells how long a save that begins
    now would take, which the wall-clock budget keeps back. It is called during training only. `from_universal` is true
    where training goes on from a universal checkpoint of DeepSpeed's. `predicted` is logged
    beside what is measured.
    """
    draw_epoch = None
    if isinstance(train_set, RedrawnDataset):
        draw_epoch = DrawEpoch(train_set, len(train_set) // recipe.global_batch_size)
    flops_per_token = this_gpu.flops_per_token(linear_parameters, recipe.method == "full")
    return RunCallbacks(
        stop=StopInTime(recipe.max_hours, seconds_to_save),
        tokens=RealTokens(),
        log=StepLog(run_dir, flops_per_token, this_gpu.peak_flops(this_gpu.device_name()), predicted),
        energy=EnergyUsed(),
        non_finite=StopOnNonFinite(train_set),
        best=BestCheckpoint(recipe),
        draw_epoch=draw_epoch,
        separate_steps=SeparateSteps() if from_universal else None,
        samples=samples,
        trackers=trackers or {},
    )
