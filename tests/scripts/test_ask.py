"""The prompt of ask.py in a terminal of its own: what is typed, edited and brought back."""

import os
import pty
import subprocess
import sys
import time

from command_line import ROOT, environment, run_script

QUESTION = "결로는 왜?"
FLAGS = ("--max-new-tokens", "8")


class Terminal:
    """A command with a terminal; `type` answers with what is shown until the next prompt, or the end."""

    def __init__(self, *arguments):
        self.own, other = pty.openpty()
        command = [sys.executable, "scripts/ask.py", *map(str, arguments)]
        how = {"stdin": other, "stdout": other, "stderr": other, "start_new_session": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment(TERM="dumb", LANG="C.UTF-8"), **how)
        os.close(other)
        self.shown()

    def shown(self) -> str:
        text, end = b"", time.monotonic() + 120
        while not text.endswith("질문> ".encode()) and time.monotonic() < end:
            try:
                text += os.read(self.own, 4096)
            except OSError:  # Linux's way to say that the other side is closed
                break
        return text.decode("utf-8", "replace").replace("\r", "")

    def type(self, keys: str) -> str:
        os.write(self.own, keys.encode())
        return self.shown()

    def ended(self) -> int:
        os.close(self.own)
        return self.process.wait(30)


def answer_of(*flags) -> str:
    done = run_script("scripts/ask.py", *flags, *FLAGS, QUESTION)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-2].strip()  # the last line says that it was cut


def test_a_line_is_edited_and_brought_back_and_the_base_is_heard(lora_run, neox_folder):
    tuned, base = answer_of("--run", lora_run), answer_of("--model", neox_folder, "--base-precision", "fp32")
    assert tuned != base
    terminal = Terminal("--run", lora_run, *FLAGS)
    assert tuned not in terminal.type("\r")
    assert "/quit" in terminal.type("/help\r")
    assert "/nothing is not known here: /help lists what is." in terminal.type("/nothing\r")
    assert tuned in terminal.type("결로" + "는 왠" + "\x7f왜?\r"), "Backspace takes one syllable"
    assert tuned in terminal.type("로는 왜?" + "\x1b[D" * 5 + "결\r"), "the arrow goes over whole syllables"
    assert tuned in terminal.type("\x1b[A\r"), "the arrow up brings the last question back"
    assert base in terminal.type("/base\r")
    assert base in terminal.type(f"/base {QUESTION}\r")
    assert tuned in terminal.type(f"{QUESTION}\r")
    terminal.type("/quit\r")
    assert terminal.ended() == 0


def test_control_d_ends_and_a_model_without_an_adapter_has_no_base(neox_folder):
    terminal = Terminal("--model", neox_folder, "--base-precision", "fp32", *FLAGS)
    assert "this model has none: ask its base by --model" in terminal.type(f"/base {QUESTION}\r")
    terminal.type("\x04")
    assert terminal.ended() == 0


def test_piped_questions_are_answered_until_an_empty_line(lora_run):
    command = [sys.executable, "scripts/ask.py", "--run", str(lora_run), *FLAGS]
    asked = f"{QUESTION}\n\n{QUESTION}\n".encode()
    done = subprocess.run(command, cwd=ROOT, env=environment(), input=asked, capture_output=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.decode().count(answer_of("--run", lora_run)) == 1
