"""What --report-to names: TensorBoard, Weights & Biases and others, through transformers' own callbacks."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.integrations.integration_utils import get_available_reporting_integrations

from llm_qa.console import UserError, say
from llm_qa.language import tr

TAKE_TEXT = ("tensorboard", "wandb")  # the others take numbers alone
SENDING = ("wandb",)  # to a service


def check_trackers(arguments: TrainingArguments) -> None:
    """Refuse a --report-to that transformers does not know or that is not installed, before anything is loaded."""
    try:
        trackers = dict(zip(arguments.report_to, get_reporting_integration_callbacks(arguments.report_to), strict=True))
        for name in trackers.keys() - get_available_reporting_integrations():
            trackers[name]()  # raises what Trainer would raise after loading
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(
            tr(
                "--report-to {report_to}: {error}",
                report_to=",".join(arguments.report_to),
                error=" ".join(str(error).split()),
            )
        ) from None


def take_trackers(arguments: TrainingArguments) -> dict[str, TrainerCallback]:
    """The callbacks that --report-to names, by name, which are no longer Trainer's to add.

    Trainer would call them before the run's own, which add speed and memory to what is logged.
    """
    names = list(arguments.report_to)
    arguments.report_to = []
    return {name: kind() for name, kind in zip(names, get_reporting_integration_callbacks(names), strict=True)}


def warn_of_sent_texts(trackers: Mapping[str, TrainerCallback], samples: int) -> None:
    """Say it where sample answers leave this machine."""
    for name in trackers.keys() & set(SENDING):
        if samples:
            say(
                tr(
                    "note: --report-to {name} sends {count} validation questions with their answers to its service, "
                    "unless WANDB_MODE=offline is set; --sample-answers 0 sends figures alone",
                    name=name,
                    count=samples,
                )
            )


def send_text(
    trackers: Mapping[str, TrainerCallback],
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    texts: dict[str, str],
) -> None:
    """Give texts, by name, to the trackers that show them."""
    for name in TAKE_TEXT:
        if name in trackers:
            trackers[name].on_log(args, state, control, logs=dict(texts))
