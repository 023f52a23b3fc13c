"""What a person at the terminal sees: one-sentence errors, exit codes, plain lines, a progress bar."""

from __future__ import annotations

import argparse
import io
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_STOPPED_EARLY = 75  # everything is saved; the same command goes on


class UserError(ValueError):
    """The user's input or flags are at fault: one sentence with the value, the reason and the flag to change."""


class Failed(RuntimeError):
    """What cannot go on and is nobody's input: one sentence with what happened and what helps."""


class StoppedEarly(Exception):
    """The work ended before its end with everything saved; the same command goes on."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, with the script's docstring shown as it is written and mistakes in flags as a UserError."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str):
        """One sentence in place of argparse's usage lines and exit."""
        raise UserError(f"{message.removeprefix('argument ')} (--help lists the flags).")


def whole_number(text: str, at_least: int = 0) -> int:
    """A flag's value as an int; what is no whole number of at least `at_least` is a mistake in the flag."""
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or value < at_least:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {at_least}")
    return value


def positive_int(text: str) -> int:
    """A flag's value as an int of at least 1."""
    return whole_number(text, at_least=1)


def is_main_process() -> bool:
    """True in the one process that talks to the user (rank 0 of an `accelerate launch`)."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str = "") -> None:
    """Print one line from the main process only."""
    if is_main_process():
        print(message, flush=True)


def progress(
    iterable: Iterable | None = None,
    *,
    total: int | None = None,
    what: str,
    unit: str = "it",
    resume_at: int = 0,
    quiet: bool = False,
):
    """A tqdm bar on the main process's stderr that shows itself after a second; silent on the other processes.

    `quiet` is for a step of something that has its own bar.
    """
    from tqdm import tqdm

    return tqdm(
        iterable,
        total=total,
        initial=resume_at,
        desc=what,
        unit=f" {unit}",
        dynamic_ncols=True,
        disable=quiet or not is_main_process(),
        mininterval=0.5 if sys.stderr.isatty() else 15,  # a log file is not a screen
        delay=1,
    )


def display_width(text: str) -> int:
    """Columns that `text` takes in a terminal: a Hangul syllable takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def format_table(header: list[str], rows: list[list[str]]) -> str:
    """A plain text table; the first column is left-aligned, the others right-aligned, Hangul counted double."""
    widths = [max(display_width(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: list[str]) -> str:
        cells = [cell + " " * (w - display_width(cell)) for cell, w in zip(row[:1], widths[:1], strict=True)]
        cells += [" " * (w - display_width(cell)) + cell for cell, w in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def counted(number: int, noun: str) -> str:
    """(1, 'sequence') -> '1 sequence', (2000, 'sequence') -> '2,000 sequences'."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def format_seconds(seconds: float) -> str:
    """75 -> '1m15s', 3725 -> '1h02m'."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


def run_script(
    main: Callable[[], int | None], speaks: Callable[[str], bool] = lambda message: is_main_process()
) -> None:
    """Run a script's `main` and exit with the documented code.

    `speaks` says whether this process tells the user of an error; a script whose ranks can fail alone gives
    `distributed.first_to_say`.

    A UserError becomes one line on stderr and exit code 2, a Failed or Ctrl-C one line and 1. Any other exception keeps
    its traceback and ends with 1. A script that keeps what it has done catches Ctrl-C and raises StoppedEarly.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Korean must survive LANG=C and Windows consoles
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        sys.exit(main() or EXIT_DONE)
    except UserError as error:
        if speaks(str(error)):
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except Failed as error:
        if speaks(str(error)):
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_FAILED)
    except StoppedEarly as stop:
        say(str(stop))
        sys.exit(EXIT_STOPPED_EARLY)
    except KeyboardInterrupt:
        if is_main_process():
            print("error: stopped by Ctrl-C", file=sys.stderr, flush=True)
        sys.exit(EXIT_FAILED)
    except BrokenPipeError:  # the reader (`| head`) went away; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
