"""Callbacks that count tokens and log training steps."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import IntervalStrategy

from llm_qa import files
from llm_qa.console import format_seconds, is_main_process, progress, say
from llm_qa.data.packing import count_real_tokens
from llm_qa.distributed import sum_over_ranks
from llm_qa.language import later, tr
from llm_qa.planning.figures import Figures
from llm_qa.planning.this_gpu import peak_memory_bytes
from llm_qa.training.callbacks.stopping import command_started
from llm_qa.training.log_file import LogFile
from llm_qa.widths import display_width

# The heading of the lines on the screen, and how many columns each takes: 80 in all for a run of up to 99,999 updates.
COLUMNS = (
    *((later("step"), 11), (later("epoch"), 6), (later("loss"), 7), (later("rate"), 8), (later("grad"), 6)),
    *((later("tok/s"), 8), ("MFU", 4), ("GiB", 5), ("ETA", 7)),
)
LINES_A_HEADING = 20
FOR_TRACKERS = ("tokens", "tokens_per_second", "mfu")  # of a logged line, beside what Trainer logs


def columns(cells: Iterable[str]) -> str:
    """The cells of a line, each in the columns of its heading."""
    return "  ".join(
        " " * (width - display_width(cell)) + cell for cell, (_, width) in zip(cells, COLUMNS, strict=False)
    )


def heading() -> str:
    """What the numbers of a line are; MFU is model FLOP utilisation, GiB the peak memory, ETA the time left."""
    return columns(tr(title) for title, _ in COLUMNS)


class RealTokens(TrainerCallback):
    """Counts tokens of all ranks without padding in `state.num_input_tokens_seen`, without a synchronisation per step.

    Trainer's own count leaves out every pad token, so where pad is eos it misses each document's last token.
    """

    def __init__(self):
        self.pending: torch.Tensor | None = None
        self.hook: RemovableHandle  # from on_train_begin on

    def _count(self, module, args, kwargs) -> None:
        if module.training:
            tokens = count_real_tokens(kwargs["position_ids"])
            self.pending = tokens if self.pending is None else self.pending + tokens

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Register a hook on the model's inputs."""
        self.hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def on_step_end(self, args, state, control, **kwargs):
        """Update the state where it is about to be logged or saved; an evaluation may lead to a checkpoint."""
        read = control.should_log or control.should_save or control.should_evaluate
        if self.pending is not None and (read or state.global_step >= state.max_steps):
            state.num_input_tokens_seen += int(sum_over_ranks([self.pending.item()], args.device)[0])
            self.pending = None

    def on_train_end(self, args, state, control, **kwargs):
        """Remove the hook."""
        self.hook.remove()


class StepLog(TrainerCallback, ExportableState):
    """One dense line per logged step on the screen, one JSON object in log.jsonl, and a progress bar.

    Seconds and tokens are counted across restarts. Lines of steps after the checkpoint that a run resumes from are
    dropped, as those steps are repeated.
    """

    def __init__(
        self,
        run_dir: Path,
        flops_per_token: float = 0.0,
        peak_flops: float | None = None,
        predicted: Figures | None = None,
    ):
        self.file = LogFile(Path(run_dir) / files.LOG)
        self.lines_before = 0  # of earlier starts of the run
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.predicted = predicted
        self.seconds_before = 0.0
        self.started = self.last_time = time.perf_counter()
        self.last_tokens = 0
        self.start_up_seconds: float | None = None
        self.lines_shown = 0
        self.step_ended, self.validated = self.started, False  # whether there was a validation after that step
        self.bar: tqdm  # from on_train_begin on

    def state(self) -> dict:
        """The state that Trainer saves with each checkpoint."""
        return {"args": {}, "attributes": {"seconds_before": self.elapsed()}}

    def elapsed(self) -> float:
        """Seconds of training, earlier parts of this run included."""
        return self.seconds_before + time.perf_counter() - self.started

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock; cut the log back to the step that training goes on from."""
        saved = state.stateful_callbacks.get("StepLog") if state.global_step else None
        self.seconds_before = saved["attributes"]["seconds_before"] if saved else 0.0
        self.started = self.last_time = time.perf_counter()
        self.last_tokens = state.num_input_tokens_seen
        if is_main_process():
            self.file.cut_back(state.global_step)
            if self.predicted:
                self.file.append({"step": state.global_step, "predicted": asdict(self.predicted)})
            self.lines_before = len(self.file.lines)
        at_log = not sys.stderr.isatty()  # which has the lines of the steps
        self.bar = progress(
            total=state.max_steps, what="training", unit="steps", resume_at=state.global_step, quiet=at_log
        )

    def on_step_end(self, args, state, control, **kwargs):
        """Advance the bar, and after the first step print the start-up time.

        The last step of the training is logged whatever `logging_steps` is, and validated. A run that stops early keeps
        what was not logged yet in its checkpoint, and its log goes on as if it had not stopped.
        """
        if self.start_up_seconds is None:
            self.start_up_seconds = round(time.time() - command_started(), 1)
            say(tr("first update finished after {duration}", duration=format_seconds(self.start_up_seconds)))
        self.bar.update(1)
        self.step_ended = time.perf_counter()
        if state.global_step >= state.max_steps:
            control.should_log |= args.logging_strategy != IntervalStrategy.NO
            control.should_evaluate |= args.eval_strategy != IntervalStrategy.NO

    def on_step_begin(self, args, state, control, **kwargs):
        """Leave the seconds of a validation out of the next rate."""
        if self.validated:
            self.last_time += time.perf_counter() - max(self.last_time, self.step_ended)
            self.validated = False

    def on_evaluate(self, args, state, control, **kwargs):
        """Remember the validation, which ends, with the answers and the checkpoint that follow, at the next step."""
        self.validated = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Log Trainer's metrics with throughput and memory, which are added for the trackers that are called later."""
        if "loss" in logs:
            line = self._training_line(args, state, logs)
            logs |= {key: line[key] for key in FOR_TRACKERS if key in line}
            logs["peak_memory_gib"] = round(line["peak_memory_bytes"] / 2**30, 3)
        elif "eval_loss" in logs:
            line = {"step": state.global_step, "epoch": state.epoch, "validation_loss": logs["eval_loss"]}
        else:
            return
        if is_main_process():
            self.file.append(line)
            if self.lines_shown % LINES_A_HEADING == 0:
                say(heading())
            self.lines_shown += 1
            say(self.as_text(line, state.max_steps))

    def on_save(self, args, state, control, **kwargs):
        """Retry lines that the disk refused earlier: it has just had room for a checkpoint."""
        if is_main_process():
            self.file.catch_up()

    def _training_line(self, args, state, logs: dict) -> dict:
        now = time.perf_counter()
        seconds, self.last_time = now - self.last_time, now
        tokens = state.num_input_tokens_seen - self.last_tokens
        self.last_tokens = state.num_input_tokens_seen
        rate = tokens / seconds if seconds > 0 else 0.0
        line = {
            "step": state.global_step,
            "epoch": round(state.epoch, 6),
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "tokens": state.num_input_tokens_seen,
            "tokens_per_second": round(rate, 1),
            "peak_memory_bytes": peak_memory_bytes(),
            "elapsed_seconds": round(self.elapsed(), 3),
        }
        if (mfu := self.mfu(rate / args.world_size)) is not None:
            line["mfu"] = mfu
        return line

    def mfu(self, tokens_per_second: float) -> float | None:
        """Model FLOP utilisation of one GPU at this rate; None where the GPU's peak is not known."""
        return round(tokens_per_second * self.flops_per_token / self.peak_flops, 4) if self.peak_flops else None

    def as_text(self, line: dict, max_steps: int) -> str:
        """The dense line below `heading`, of 80 columns; a validation has its loss in words."""
        cells = [f"{line['step']}/{max_steps}", f"{line['epoch']:.2f}"]
        if "validation_loss" in line:
            return f"{columns(cells)}  {tr('validation loss {loss:.4f}', loss=line['validation_loss'])}"
        norm, mfu = line["grad_norm"], line.get("mfu")
        left = line["elapsed_seconds"] / line["step"] * (max_steps - line["step"])
        cells += [f"{line['loss']:.4f}", f"{line['learning_rate']:.2e}", "–" if norm is None else f"{norm:.2f}"]
        cells += [f"{line['tokens_per_second']:,.0f}", "–" if mfu is None else f"{mfu:.0%}"]
        return columns([*cells, f"{line['peak_memory_bytes'] / 2**30:.1f}", format_seconds(left)])

    def measured(self, peak_bytes: float) -> Figures | None:
        """What was measured so far, beside `predicted`; None without a logged step of this start.

        The rate is the median of the logged lines but the first, in which layers are compiled.
        """
        rates = [line["tokens_per_second"] for line in self.file.lines[self.lines_before :] if "loss" in line]
        if not rates:
            return None
        return Figures(peak_bytes, statistics.median(rates[1:] or rates), round(self.elapsed(), 3))

    def compare(self, step: int, peak_bytes: float) -> dict:
        """The prediction and what was measured: said, logged, and returned by name; empty without a prediction.

        On the main process alone.
        """
        if not (self.predicted and (measured := self.measured(peak_bytes))):
            return {}
        both = {"predicted": asdict(self.predicted), "measured": asdict(measured)}
        self.file.append({"step": step, **both})
        say(tr("predicted {predicted}; measured {measured}", predicted=self.predicted, measured=measured))
        return both

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        self.bar.close()
