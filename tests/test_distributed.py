"""What the ranks tell each other, and who of them tells the user."""

import time

import pytest
import torch
from test_background_saving import in_two_ranks

from llm_qa import distributed
from llm_qa.console import Failed, StoppedEarly, UserError


def test_ranks_that_fail_alike_are_heard_once_and_one_alone_too(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "shared_store", lambda: store)
    assert distributed.first_to_say("the disk is full")
    assert not distributed.first_to_say("the disk is full")
    assert distributed.first_to_say("out of memory on rank 1 alone")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert distributed.first_to_say("the disk is full"), "after a restart it is news again"


def test_without_a_store_an_error_is_heard(monkeypatch):
    def gone():
        raise RuntimeError("connection reset")

    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "shared_store", gone)
    assert distributed.first_to_say("rank 0 is gone")


def test_before_the_ranks_meet_the_first_of_each_machine_speaks(monkeypatch):
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert distributed.first_to_say("8 processes on a machine with 4 GPUs")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not distributed.first_to_say("8 processes on a machine with 4 GPUs")


@pytest.mark.parametrize(
    ("error", "elsewhere", "message"),
    [
        (UserError("--run is a file"), UserError, "--run is a file"),
        (Failed("out of memory"), Failed, "out of memory"),
        (StoppedEarly("halved"), StoppedEarly, "halved"),
        (RuntimeError("no such share"), Failed, "the first process failed with RuntimeError: no such share"),
        (KeyboardInterrupt(), Failed, "the first process failed with KeyboardInterrupt: "),
    ],
)
def test_whatever_the_first_process_raises_ends_the_others_at_once(tmp_path, error, elsewhere, message):
    def work(rank):
        torch.distributed.init_process_group("gloo")
        assert distributed.run_on_main(lambda: {"seen": rank}) == {"seen": 0}

        def fail():
            assert rank == 0, "on the first process alone"
            raise error

        began = time.monotonic()
        with pytest.raises(BaseException) as raised:  # noqa: PT011  KeyboardInterrupt is no Exception
            distributed.run_on_main(fail)
        assert time.monotonic() - began < 10
        expected = (type(error), str(error)) if rank == 0 else (elsewhere, message)
        assert (type(raised.value), str(raised.value)) == expected
        (tmp_path / str(rank)).write_text("ended")

    assert in_two_ranks(work) == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
