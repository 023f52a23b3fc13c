"""log.jsonl where the disk fails, the file vanishes or a line is torn: every line is there in the end."""

import errno
import os

import pytest

from llm_qa import files
from llm_qa.training.log_file import LogFile


def line(step):
    return {"step": step, "loss": 1 / step}


@pytest.fixture
def log(tmp_path):
    """A log of two lines."""
    made = LogFile(tmp_path / "run" / "log.jsonl")
    made.cut_back(0)
    made.append(line(1))
    made.append(line(2))
    return made


def full_disk(monkeypatch):
    """fsync has no room until the monkeypatch is undone."""

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("by", ["the next line", "a checkpoint that is saved"])
def test_what_a_full_disk_refuses_is_written_later(log, monkeypatch, capsys, by):
    with monkeypatch.context() as patched:
        full_disk(patched)
        log.append(line(3))
        log.append(line(4))
    assert capsys.readouterr().out.count("(No space left on device): its lines are kept in memory until it can") == 1
    if by == "the next line":
        log.append(line(5))
    else:
        log.catch_up()
    steps = [1, 2, 3, 4, 5][: 5 if by == "the next line" else 4]
    assert files.read_jsonl(log.path) == [line(step) for step in steps]


def test_a_file_that_vanished_or_was_cut_is_written_anew(log):
    log.path.unlink()
    log.append(line(3))
    log.path.write_bytes(log.path.read_bytes()[:-5])
    log.append(line(4))
    assert files.read_jsonl(log.path) == [line(step) for step in (1, 2, 3, 4)]


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b"\xff\xfe\n", b"\x00" * 40 + b"\n"])
def test_a_torn_line_and_those_after_it_are_of_steps_done_again(log, torn):
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + torn)
    again = LogFile(log.path)
    again.cut_back(2)
    assert log.path.read_bytes() == whole
    again.cut_back(1)
    assert files.read_jsonl(log.path) == [line(1)]
