"""What a person at the terminal sees: one-sentence errors, exit codes, plain lines, a progress bar."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from llm_qa.language import KOREAN, LANGUAGES, choose_language, language, later, set_language, tr
from llm_qa.widths import display_width, wrapped

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_STOPPED_EARLY = 75  # everything is saved; the same command goes on
LOG_SECONDS = 30  # between two states of a bar where stderr is no screen
IS_STEP = "LLM_QA_IS_STEP"  # the variable of a command that another one, or a target of the Makefile, follows up itself


class UserError(ValueError):
    """The user's input or flags are at fault: one sentence with the value, the reason and the flag to change."""


class Failed(RuntimeError):
    """What cannot go on and is nobody's input: one sentence with what happened and what helps."""


class StoppedEarly(Exception):
    """The work ended before its end with everything saved; the same command goes on."""


ARGPARSE = (  # what argparse says in our help and errors; it looks each up by its `_`
    later("usage: "),
    later("options"),
    later("positional arguments"),
    later("show this help message and exit"),
    later("the following arguments are required: %s"),
    later("unrecognized arguments: %s"),
    later("expected one argument"),
    later("expected at least one argument"),
    later("expected at most one argument"),
    later("ambiguous option: %(option)s could match %(matches)s"),
    later("ignored explicit argument %r"),
    later("invalid choice: %(value)r (choose from %(choices)s)"),
    later("invalid %(type)s value: %(value)r"),
    later("not allowed with argument %s"),
    later("one of the arguments %s is required"),
)


class _ChooseLanguage(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        set_language(values)


class HelpFormatter(argparse.HelpFormatter):
    """argparse's, that knows how wide Hangul is and keeps the commands of a description as they are."""

    def __init__(self, prog: str):
        super().__init__(prog, width=shutil.get_terminal_size().columns - 5)  # "usage: " is wider in Korean

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(text, width).replace("\n  ", "\n").split("\n")

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Prose is filled anew; a line that begins with a space is a command, and a blank one ends a paragraph."""
        lines: list[str] = []
        joins = False
        for line in text.strip().split("\n"):
            is_prose = bool(line) and not line.startswith(" ")
            if joins and is_prose:
                lines[-1] += f" {line}"
            else:
                lines.append(line)
            joins = is_prose
        filled = (line if line.startswith(" ") else wrapped(line, width).replace("\n  ", "\n") for line in lines)
        return "\n".join(filled)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, with the script's docstring shown as it is written and mistakes in flags as a UserError.

    Every script takes --lang by it. `run_script` has chosen that language before, so that help and mistakes in flags
    are in it wherever --lang stands.
    """

    def __init__(self, **settings):
        vars(argparse)["_"] = tr
        super().__init__(formatter_class=HelpFormatter, **settings)
        self.add_argument(
            "--lang",
            choices=LANGUAGES,
            action=_ChooseLanguage,
            default=argparse.SUPPRESS,
            help="language of what is shown and written (default: the locale's)",
        )

    def format_help(self) -> str:
        """As argparse's, with each flag's help in the chosen language."""
        for action in self._actions:
            action.help = action.help and tr(action.help)
        for group in self._action_groups:
            group.title = group.title and tr(group.title)
        self.description = self.description and tr(self.description)
        self.usage = self.usage and tr(self.usage)
        return super().format_help()

    def error(self, message: str):
        """One sentence in place of argparse's usage lines and exit."""
        raise UserError(tr("{mistake} (--help lists the flags).", mistake=message.removeprefix("argument ")))


def whole_number(text: str, at_least: int = 0) -> int:
    """A flag's value as an int; what is no whole number of at least `at_least` is a mistake in the flag."""
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or value < at_least:
        message = tr("{text} is not a whole number of at least {at_least}", text=text, at_least=at_least)
        raise argparse.ArgumentTypeError(message)
    return value


def positive_int(text: str) -> int:
    """A flag's value as an int of at least 1."""
    return whole_number(text, at_least=1)


def positive_number(text: str) -> float:
    """A flag's value as a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(tr("{text} is not a number above 0", text=text))
    return value


def is_main_process() -> bool:
    """True in the one process that talks to the user (rank 0 of an `accelerate launch`)."""
    return os.environ.get("RANK", "0") == "0"


def terminal_columns() -> int | None:
    """Columns of the terminal; None where lines go to a file or a pipe, in which nothing is broken."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def say(message: str = "", *, as_is: bool = False) -> None:
    """Print lines from the main process only, those that are too long for the terminal broken between words.

    `as_is` is for what is copied, such as a command: it is not broken. A bar on the screen makes room for the lines.
    """
    if is_main_process():
        columns = None if as_is else terminal_columns()
        bars = sys.modules.get("tqdm") if sys.stderr.isatty() else None  # not imported for the lines alone
        with bars.tqdm.external_write_mode() if bars else contextlib.nullcontext():
            print(wrapped(message, columns) if columns else message, flush=True)


def say_next(message: str) -> None:
    """Print which command comes next, unless this one is a step of `make eval`, `make demo` or another command."""
    if not os.environ.get(IS_STEP):
        say(message, as_is=True)


class LineStream:
    """stderr for a log, which cannot take a line back as a screen can: every state of a bar becomes a line."""

    def __init__(self, stream: TextIO):
        self.stream, self.after_state = stream, False

    def write(self, text: str) -> int:
        """Write; a bar's state begins with a carriage return, one of spaces alone clears it, and a newline ends it."""
        if text.startswith("\r"):
            if state := text.strip():
                self.stream.write(f"{state}\n")
                self.after_state = True
        elif text and not (text == "\n" and self.after_state):
            self.stream.write(text)
            self.after_state = False
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def progress(
    iterable: Iterable | None = None,
    *,
    total: int | None = None,
    what: str,
    unit: str = "it",
    resume_at: int = 0,
    quiet: bool = False,
):
    """A tqdm bar on the main process's stderr that shows itself after a second, in a log a line now and then.

    It tells the time that is left, and is silent on the other processes.

    `quiet` is for a step of something that has its own bar.
    """
    from tqdm import tqdm

    return tqdm(
        iterable,
        total=total,
        initial=resume_at,
        desc=tr(what),
        unit=f" {tr(unit)}",
        dynamic_ncols=True,
        disable=quiet or not is_main_process(),
        mininterval=0.5 if sys.stderr.isatty() else LOG_SECONDS,
        delay=1,
    )


def format_table(header: list[str], rows: list[list[str]]) -> str:
    """A plain text table; the first column is left-aligned, the others right-aligned, Hangul counted double."""
    widths = [max(display_width(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: list[str]) -> str:
        cells = [cell + " " * (w - display_width(cell)) for cell, w in zip(row[:1], widths[:1], strict=True)]
        cells += [" " * (w - display_width(cell)) + cell for cell, w in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def counted(number: int, noun: str) -> str:
    """(1, 'sequence') -> '1 sequence', (2000, 'sequence') -> '2,000 sequences', in Korean '시퀀스 2,000개'."""
    if language() == KOREAN:
        return f"{tr(noun)} {number:,}개"
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
    choose_language(sys.argv[1:])
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", str(LOG_SECONDS))  # for the bars of libraries
        os.environ.setdefault("TQDM_DELAY", "1")
        sys.stderr = LineStream(sys.stderr)
    try:
        sys.exit(main() or EXIT_DONE)
    except UserError as error:
        if speaks(str(error)):
            print(tr("error: {error}", error=error), file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except Failed as error:
        if speaks(str(error)):
            print(tr("error: {error}", error=error), file=sys.stderr, flush=True)
        sys.exit(EXIT_FAILED)
    except StoppedEarly as stop:
        say(str(stop))
        sys.exit(EXIT_STOPPED_EARLY)
    except KeyboardInterrupt:
        if is_main_process():
            print(tr("error: stopped by Ctrl-C"), file=sys.stderr, flush=True)
        sys.exit(EXIT_FAILED)
    except BrokenPipeError:  # the reader (`| head`) went away; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
