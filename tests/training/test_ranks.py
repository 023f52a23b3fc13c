"""What the ranks tell each other, and who of them tells the user."""

import torch

from llm_qa.training import ranks


def test_ranks_that_fail_alike_are_heard_once_and_one_alone_too(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(ranks, "together", lambda: True)
    monkeypatch.setattr(ranks, "shared_store", lambda: store)
    assert ranks.first_to_say("the disk is full")
    assert not ranks.first_to_say("the disk is full")
    assert ranks.first_to_say("out of memory on rank 1 alone")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert ranks.first_to_say("the disk is full"), "after a restart it is news again"


def test_without_a_store_an_error_is_heard(monkeypatch):
    def gone():
        raise RuntimeError("connection reset")

    monkeypatch.setattr(ranks, "together", lambda: True)
    monkeypatch.setattr(ranks, "shared_store", gone)
    assert ranks.first_to_say("rank 0 is gone")


def test_before_the_ranks_meet_the_first_of_each_machine_speaks(monkeypatch):
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert ranks.first_to_say("8 processes on a machine with 4 GPUs")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not ranks.first_to_say("8 processes on a machine with 4 GPUs")
