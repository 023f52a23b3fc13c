"""Work in batches: in order, once, resumed after a kill, shared by processes."""

import json

import pytest

from llm_qa.console import UserError
from llm_qa.evaluation.predict.batches import delete_partial_results, in_batches

ITEMS = ["가", "나나나", "다다", "라라라라", "마"]


class Killed(Exception):
    pass


@pytest.fixture
def part(tmp_path):
    return tmp_path / "eval" / "answers"


def run(part, *, key="k", die_after=None):
    """Double every item; returns (Work, batches that were worked on)."""
    seen = []

    def work(number, batch):
        if len(seen) == die_after:
            raise Killed
        seen.append((number, batch))
        return [text * 2 for text in batch]

    return in_batches(ITEMS, list(map(len, ITEMS)), work, batch_size=2, part=part, key=key, what="doubling"), seen


def test_values_in_the_items_order_longest_batches_first(part):
    work, seen = run(part)
    assert work.values == [text * 2 for text in ITEMS]
    assert seen == [(0, ["라라라라", "나나나"]), (1, ["다다", "가"]), (2, ["마"])]
    delete_partial_results(part)
    assert list(part.parent.iterdir()) == []


def test_a_name_with_brackets_is_only_a_name(tmp_path):
    part = tmp_path / ".answers [1].csv"
    assert run(part)[0].values == [text * 2 for text in ITEMS]
    assert run(part)[1] == [], "all of it is kept"
    delete_partial_results(part)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_goes_on_where_it_was(part, capsys):
    with pytest.raises(Killed):
        run(part, die_after=2)
    work, seen = run(part)
    assert seen == [(2, ["마"])]
    assert work.values == [text * 2 for text in ITEMS]
    assert "going on after 4 of 5" in capsys.readouterr().out


def test_a_line_torn_by_the_kill_is_done_again_and_spoils_no_other(part):
    with pytest.raises(Killed):
        run(part, die_after=2)
    path = part.parent / "answers.0.part"
    path.write_bytes(path.read_bytes()[:-20])
    work, seen = run(part)
    assert [number for number, _ in seen] == [1, 2]
    assert work.values == [text * 2 for text in ITEMS]
    assert run(part)[1] == []


def test_other_weights_or_settings_start_again(part, capsys):
    with pytest.raises(Killed):
        run(part, die_after=2)
    _, seen = run(part, key="other")
    assert len(seen) == 3
    assert "starts again" in capsys.readouterr().out


def test_processes_share_the_batches_and_another_number_goes_on(part, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="1 of 3 batches of doubling are not in .* put --run on a disk"):
        run(part)  # process 0 alone: batches 0 and 2
    monkeypatch.setenv("RANK", "1")
    work, seen = run(part)
    assert [number for number, _ in seen] == [1]
    assert work.values == [text * 2 for text in ITEMS]
    assert sorted(path.name for path in part.parent.iterdir()) == ["answers.0.part", "answers.1.part"]
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    assert run(part)[1] == []


def test_the_seconds_before_a_kill_count(part):
    run(part)
    path = part.parent / "answers.0.part"
    lines = [json.loads(line) | {"seconds": 2.0} for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert run(part)[0].seconds == 6.0
