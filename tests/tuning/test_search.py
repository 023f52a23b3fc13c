"""The search with a training that takes no time: what it keeps, what it goes on with, what it says when one fails."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llm_qa import files
from llm_qa.config.recipe import make_recipe
from llm_qa.console import Failed, StoppedEarly, UserError
from llm_qa.tuning.search import STATE, Search
from llm_qa.tuning.trial import Signals, output_file
from llm_qa.tuning.validation import ValidationText

RECIPE = make_recipe({"learning_rate": 1e-3})
# Trains to a loss of |rate / 0.003 - 1| + 1 / epochs, and writes what a run leaves behind.
TRAIN = """
import json, os, pathlib, signal, sys, time
run, rate, epochs, started, does = pathlib.Path(sys.argv[1]), *map(float, sys.argv[2:4]), *sys.argv[4:6]
with open(started, "a") as file:
    print(run.name, file=file)
if does == "wait":
    def stop(*_):
        run.mkdir()
        (run / "training.json").write_text(json.dumps({"finished": False}))
        print("stopped early at step 1 of 2", flush=True)
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    print("  1/2 waiting", flush=True)
    time.sleep(60)
if does == "fail" or (does == "diverge" and rate > 0.002):
    print("error: Step 3: a gradient is not a finite number." if does == "diverge" else "error: no such thing")
    sys.exit(1)
for folder in ("checkpoints/checkpoint-2", "adapter", "base"):
    (run / folder).mkdir(parents=True)
    (run / folder / "weights").write_bytes(b"1234")
print("  2/2  1.00", flush=True)
kept = {"step": 2, "validation_loss": abs(rate / 0.003 - 1) + 1 / epochs}
about = {"finished": True, "kept": kept, "steps": 2, "epochs": epochs, "wall_seconds": 0.1}
(run / "training.json").write_text(json.dumps(about))
"""


@pytest.fixture
def search(tmp_path):
    return Search(tmp_path / "search", RECIPE, "a" * 64, ValidationText(200, 400), (1.0, 2.0))


def command(search, does="train"):
    """What runs TRAIN, and where it writes down which trials were started."""
    started = search.folder.with_name("started")

    def train(keys, run):
        values = [run, keys["learning_rate"], keys["num_train_epochs"], started, does]
        return [sys.executable, "-c", TRAIN, *map(str, values)]

    return train, lambda: started.read_text().split() if started.is_file() else []


def test_the_best_run_is_whole_and_of_the_others_all_but_weights(search, capsys):
    train, started = command(search)
    best = search.run(train, Signals())
    assert best.setting.name == "lr0.003-batch1-epochs2"
    assert len(started()) == 6 + 3
    assert {path.name for path in search.folder.glob("*/adapter")} == {"adapter"}
    assert [path.parent.name for path in search.folder.glob("*/adapter")] == [best.setting.name]
    assert (search.folder / best.setting.name / "base").is_dir()
    assert not list(search.folder.glob("*/checkpoints"))
    assert len(list(search.folder.glob("*/training.json"))) == 9
    stored = files.read_json(search.folder / STATE)
    assert len(stored["trials"]) == 9
    assert stored["best"] == best.setting.name
    row = next(row for row in stored["trials"] if row["epochs"] == 2 and row["learning_rate"] == 0.003)
    assert row["bits_per_character"] == pytest.approx(0.5 * 200 / 0.6931472 / 400)
    table = search.table().splitlines()
    assert table[2].endswith("best")
    assert len(table) == 2 + 9
    said = capsys.readouterr().out
    assert "trial 1 of at most 9: learning rate 0.001, batch 1, 1 epoch; its time tells" in said
    assert "trial 9 of at most 9" in said
    assert "all that is left at most" in said


def test_finished_trials_are_kept_and_others_are_started(search):
    train, started = command(search)

    def twice(keys, run):
        if len(started()) == 2:
            raise KeyboardInterrupt
        return train(keys, run)

    with pytest.raises(KeyboardInterrupt):
        search.run(twice, Signals())
    again = replace(search, results=[])
    again.load()
    assert len(again.results) == 2
    again.run(train, Signals())
    assert len(started()) == len(set(started())) == 9
    assert again.results == sorted(again.results, key=lambda r: started().index(r.setting.name))
    done = replace(search, results=[])
    done.load()
    assert done.run(train, Signals()) == again.best()
    assert len(started()) == 9, "nothing is left to train"


def test_another_recipe_or_other_data_is_refused(search):
    search.save()
    with pytest.raises(UserError, match=r"lora_r 8 -> 4.*--out"):
        replace(search, recipe=make_recipe({"learning_rate": 1e-3, "lora_r": 4})).load()
    with pytest.raises(UserError, match="the data aaaaaaaaaaaa -> bbbbbbbbbbbb"):
        replace(search, data_sha256="b" * 64).load()
    other = search.folder.with_name("other")
    files.write_text(other / "notes.txt", "mine")
    with pytest.raises(UserError, match="is not empty and holds no search"):
        replace(search, folder=other).load()


def test_a_rate_that_diverges_costs_only_itself(search):
    train, _ = command(search, "diverge")
    best = search.run(train, Signals())
    assert best.setting.learning_rate <= 2e-3
    diverged = [result for result in search.results if result.validation_loss is None]
    assert {result.setting.learning_rate for result in diverged} == {0.003, 0.006}
    assert all(result.setting.epochs == 1 for result in diverged)
    assert search.table().count("diverged") == 2
    only = replace(search, folder=search.folder.with_name("only"), rates=[1.0, 2.0], results=[])
    with pytest.raises(Failed, match="Every learning rate that was tried"):
        only.run(train, Signals())


def test_a_training_that_fails_ends_the_search_with_its_last_words(search):
    train, started = command(search, "fail")
    with pytest.raises(Failed, match=r"ended with code 1: error: no such thing \(all that it said: .*epochs1\.txt\)"):
        search.run(train, Signals())
    assert len(started()) == 1
    assert files.read_json(search.folder / STATE)["trials"] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_training_and_keeps_what_is_finished(search, number):
    train, started = command(search, "wait")
    waiting = output_file(search.folder / "lr0.001-batch1-epochs1")
    signals = Signals()
    script = f"""
import os, pathlib, time
while not (pathlib.Path({str(waiting)!r}).is_file() and "waiting" in pathlib.Path({str(waiting)!r}).read_text()):
    time.sleep(0.02)
os.kill({os.getpid()}, {int(number)})
"""
    sender = subprocess.Popen([sys.executable, "-c", script])
    began = time.monotonic()
    with signals.caught(), pytest.raises(StoppedEarly, match=f"{number.name}: stopped.*the same command goes on"):
        search.run(train, signals)
    sender.wait()
    assert time.monotonic() - began < 30
    assert len(started()) == 1
    assert json.loads(Path(search.folder / STATE).read_text(encoding="utf-8"))["best"] is None
