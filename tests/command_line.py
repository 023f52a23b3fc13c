"""Run the project's scripts as a user would, and read what they print."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/single_gpu.yaml"]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without a launcher's variables, on one thread, without a network."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def run_script(*arguments: str | Path, launch: bool = False, timeout: float = 300, **more: str):
    """A finished `python scripts/...` (or `accelerate launch scripts/...`)."""
    start = ACCELERATE if launch else [sys.executable]
    return subprocess.run(
        [*start, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        env=environment(**more),
    )
