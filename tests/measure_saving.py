"""What safety costs a save: random bytes in the sizes of real checkpoints, written plainly and then made safe.

    python tests/measure_saving.py FOLDER      on the disk that checkpoints go to; 9 GB free

Sizes are those of the recipes: fp32 weights; moments in fp32 for the adapter and in 8 bits for the whole model. What
safety adds is waiting for the disk, hashing and reading back; its share of training is that at the default save
interval and the README's plain speeds on one H200, so with the saving of this machine and the training of that one.
"""

import math
import os
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import itertools

from llm_qa.training.manifest import damage, flush, write_manifest

LORA = 26_214_400  # r 8 on every linear of 40 layers of polyglot-ko-12.8b
FULL = 1_331_810_304  # polyglot-ko-1.3b
SHAPES = {
    "12.8B LoRA": {"adapter_model.safetensors": 4 * LORA, "optimizer.pt": 8 * LORA},
    "1.3B full": {"model.safetensors": 4 * FULL, "optimizer.pt": 2 * FULL},
}
UPDATE_SECONDS = {"12.8B LoRA": 4 * 512 / 3195, "1.3B full": 4 * 512 / 4896}
SAVE_STEPS = 100
REPEATS = 3  # the fastest counts: a shared machine only ever adds
BLOCK = 64 * 2**20


def write(path: Path, size: int) -> None:
    """Random bytes, a block at a time; returns when the system has them (Trainer waits for no more either)."""
    block = os.urandom(BLOCK)
    with open(path, "wb") as file:
        for begin in range(0, size, BLOCK):
            file.write(block[: min(BLOCK, size - begin)])


def measure(folder: Path, sizes: dict[str, int]) -> tuple[float, float, float, float]:
    """Seconds of (writing, waiting for the disk, hashing, reading back)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    times = [time.perf_counter()]
    for name, size in sizes.items():
        write(folder / name, size)
    times.append(time.perf_counter())
    for name in sizes:
        flush(folder / name)
    times.append(time.perf_counter())
    write_manifest(folder, {})
    times.append(time.perf_counter())
    assert not damage(folder)
    times.append(time.perf_counter())
    shutil.rmtree(folder)
    return tuple(after - before for before, after in itertools.pairwise(times))


if __name__ == "__main__":
    for name, sizes in SHAPES.items():
        folder = Path(sys.argv[1]) / "measured-checkpoint"
        plain, disk, hashing, reading = min((measure(folder, sizes) for _ in range(REPEATS)), key=sum)
        added = disk + hashing + reading
        print(
            f"{name}: {sum(sizes.values()) / 1e9:.2f} GB; written {plain:.2f} s; on the disk {disk:.2f} s; "
            f"hashed {hashing:.2f} s; read back {reading:.2f} s ({os.cpu_count()} CPU cores). "
            f"Safety adds {added:.1f} s a save, {added / SAVE_STEPS / UPDATE_SECONDS[name]:.1%} of the time of "
            f"{SAVE_STEPS} updates; 1% from "
            f"--save-steps {math.ceil(added / UPDATE_SECONDS[name] / 0.01):,} on",
            flush=True,
        )
