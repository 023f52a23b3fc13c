"""What safety costs a training: the real saving, on files of the sizes of real checkpoints, beside a pretended GPU.

    python tests/measure_saving.py FOLDER      on the disk that checkpoints go to; 25 GB free; 10 minutes

Sizes are those of the recipes: fp32 weights; moments in fp32 for the adapter and in 8 bits for the whole model. An
update takes as long as on one H200 at the README's plain speeds: the training thread sleeps, but for a quarter in which
it is busy in Python as if it launched kernels. What Trainer writes is its own; safety costs what the training thread
waits beyond that. How much slower its Python runs while a checkpoint is made safe beside it is printed too.
"""

import os
import shutil
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent / "training"))

from toy_training import Line, Points
from transformers import Trainer, TrainingArguments

from llm_qa.training.checkpoint.trainer_hooks import CheckpointingTrainer

LORA = 26_214_400  # r 8 on every linear of 40 layers of polyglot-ko-12.8b
FULL = 1_331_810_304  # polyglot-ko-1.3b
SIZES = {"12.8B LoRA": (4 * LORA, 8 * LORA), "1.3B full": (4 * FULL, 2 * FULL)}  # bytes of weights, of moments
UPDATE_SECONDS = {"12.8B LoRA": 4 * 512 / 3195, "1.3B full": 4 * 512 / 4896}
SAVE_STEPS, SAVES = 100, 4
BLOCK = os.urandom(64 * 2**20)
BUSY_SHARE = 0.25


def write(path: str, size: int) -> None:
    """A file of random bytes; returns when the system has them, which is all that Trainer waits for."""
    with open(path, "wb") as file:
        for begin in range(0, size, len(BLOCK)):
            file.write(BLOCK[: min(len(BLOCK), size - begin)])


def busy(rounds: int) -> float:
    """Seconds that so many rounds of Python take."""
    began = time.perf_counter()
    for _ in range(rounds):
        pass
    return time.perf_counter() - began


class Measured(CheckpointingTrainer):
    """Safe saving of large files in a training that takes its time."""

    def __init__(self, folder: Path, sizes: tuple[int, int], update_seconds: float):
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=SAVE_STEPS * SAVES,
            save_steps=SAVE_STEPS,
            save_total_limit=2,
            per_device_train_batch_size=2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        super().__init__(model=Line(), args=arguments, train_dataset=Points(), callbacks=[])
        self.sizes, self.update_seconds, self.last_bytes = sizes, update_seconds, sum(sizes)
        self.rounds = round(BUSY_SHARE * update_seconds / min(busy(10**6) for _ in range(5)) * 10**6)
        self.held, self.plain, self.background = [], [], []  # seconds of each save
        self.alone, self.beside = [], []  # seconds of each update's Python

    def training_step(self, *arguments, **keywords):
        began = time.perf_counter()
        under_way = self.commit is not None and not self.commit.done()
        (self.beside if under_way else self.alone).append(busy(self.rounds))
        time.sleep(max(0.0, self.update_seconds - (time.perf_counter() - began)))
        return super().training_step(*arguments, **keywords)

    def save_model(self, output_dir, _internal_call=False):
        os.makedirs(output_dir)
        write(f"{output_dir}/model.safetensors", self.sizes[0])

    def _save_optimizer_and_scheduler(self, output_dir):
        write(f"{output_dir}/optimizer.pt", self.sizes[1])

    def _save_checkpoint(self, *arguments):
        began = time.perf_counter()
        super()._save_checkpoint(*arguments)
        self.held.append(time.perf_counter() - began)
        if len(self.plain) < len(self.held):  # it gave way
            self.plain.append(0.0)

    def _publish(self, *arguments):
        began = time.perf_counter()
        done = super()._publish(*arguments)
        self.background.append(time.perf_counter() - began)
        return done


def timed(trainer: Measured, save):
    """Trainer's own save, its seconds noted."""

    def run(*arguments):
        began = time.perf_counter()
        save(*arguments)
        trainer.plain.append(time.perf_counter() - began)

    return run


def measure(name: str, folder: Path) -> str:
    """Train and save, and say what was seen."""
    shutil.rmtree(folder, ignore_errors=True)
    trainer = Measured(folder, SIZES[name], UPDATE_SECONDS[name])
    own_save = Trainer._save_checkpoint
    Trainer._save_checkpoint = timed(trainer, lambda *arguments: own_save(trainer, *arguments[1:]))
    try:
        trainer.train()
    finally:
        Trainer._save_checkpoint = own_save
        shutil.rmtree(folder)
    added = [held - plain for held, plain in zip(trainer.held, trainer.plain, strict=True)]
    worst, training = max(added[:-1]), SAVE_STEPS * UPDATE_SECONDS[name]
    slower = statistics.median(trainer.beside) / statistics.median(trainer.alone) - 1
    gave_way = SAVES - len(trainer.background)
    return (
        f"{name}: {sum(SIZES[name]) / 1e9:.2f} GB; written in up to {max(trainer.plain):.1f} s; made safe in the "
        f"background in {min(trainer.background):.1f} to {max(trainer.background):.1f} s, {gave_way} saves gave way. "
        f"Safety holds training up for {', '.join(f'{seconds:.2f}' for seconds in added[:-1])} s a save, at most "
        f"{worst / training:.1%} of the {training:.0f} s of {SAVE_STEPS} updates, and for {added[-1]:.1f} s at the "
        f"end. Python beside it takes {slower:+.0%} ({len(trainer.beside)} updates; {os.cpu_count()} CPU cores)."
    )


if __name__ == "__main__":
    for name in SIZES:
        print(measure(name, Path(sys.argv[1]) / "measured-checkpoints"), flush=True)
