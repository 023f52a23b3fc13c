"""Three measured updates on this machine's GPU in place of the rate that a table of GPUs gives for it."""

from __future__ import annotations

import datetime
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from llm_qa import files
from llm_qa.console import Failed, UserError
from llm_qa.language import tr
from llm_qa.planning.known_gpus import Gpu
from llm_qa.planning.ways import RECIPES, Job, all_plans, best_of

FILE = Path("reports/calibration.json")
UPDATES = 3


@dataclass(frozen=True)
class Calibration:
    """What was measured of a way of the plan, on which GPU, and `share`: the measured speed over the computed one."""

    gpu: str
    way: str
    model: str
    tokens_per_second: float
    share: float
    date: str


def calibrate(job: Job, path: Path, run=subprocess.run) -> Calibration:
    """Measure the fastest way of `job` that fits one of its GPUs by `scripts/bench.py`, and write it to `path`.

    `job.gpu` is the table's, without an earlier calibration. `run` starts a command. UserError where nothing fits,
    Failed where the measurement fails.
    """
    plan = best_of(all_plans(replace(job, gpus=1, machines=1)))
    if plan is None or plan.way.offload:
        raise UserError(
            tr(
                "--calibrate trains {model}, and no way to do so fits {gpu}: name a smaller --model.",
                model=job.model,
                gpu=job.gpu.name,
            )
        )
    flags = [*plan.way.flags, "--model", job.model, "--micro-batch-size", str(plan.micro_batch)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.jsonl"
        recipe = str(RECIPES / f"{plan.way.recipe}.yaml")
        bench = [sys.executable, "scripts/bench.py", recipe, *flags, "--baselines", "ours", "--steps", str(UPDATES)]
        done = run([*bench, "--warmup", str(UPDATES), "--out", str(out)])
        if done.returncode or not out.is_file():
            raise Failed(tr("--calibrate: scripts/bench.py measured nothing; its reason stands above."))
        (row, *_) = files.read_jsonl(out)
    speed = float(row["tokens_per_second"])
    today = datetime.date.today().isoformat()
    share = speed / plan.tokens_per_second
    found = Calibration(job.gpu.name, plan.way.name, job.model, round(speed, 1), round(share, 4), today)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, asdict(found))
    return found


def calibrated(gpu: Gpu, path: Path) -> Gpu:
    """The GPU with its speeds scaled as measured where `path` holds a calibration of it, else as it is."""
    if not path.is_file():
        return gpu
    kept = files.read_json(path)
    try:
        found = Calibration(**{field.name: kept[field.name] for field in fields(Calibration)})
        share, speed = float(found.share), float(found.tokens_per_second)
    except (KeyError, TypeError, ValueError):
        share = speed = 0.0
    if not share > 0:
        raise UserError(tr("{path} is not what --calibrate writes: delete it, or calibrate again.", path=path))
    if found.gpu != gpu.name:
        return gpu
    words = tr(
        "rates of this GPU scaled to {speed:,.0f} tok/s, measured in {updates} updates of {way} of {model} on {date} "
        "({path}); other ways may be off by more",
        speed=speed,
        updates=UPDATES,
        way=found.way,
        model=found.model,
        date=found.date,
        path=path,
    )
    return replace(gpu, share=share, calibration=words)
