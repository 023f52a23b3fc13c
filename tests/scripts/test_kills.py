"""SIGKILL at any moment: the same command again ends with the adapter, log and token counts of an undisturbed run."""

import contextlib
import os
import random
import shutil
import signal
import socket
import time

import pytest
import yaml
from command_line import run_script
from fork_server import ForkServer

from llm_qa import files
from llm_qa.data.preparation import prepare
from llm_qa.data.preparation_options import PreparationOptions

CLOCK = ("tokens_per_second", "peak_memory_bytes", "elapsed_seconds", "mfu")
LAUNCHER_SECONDS = 30  # torchrun's patience with the other ranks
KILLS_A_RUN = 5  # then it may finish, and is compared


@pytest.fixture(scope="module")
def server():
    """Where scripts/train.py starts without its imports."""
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="module")
def raw(tmp_path_factory, records):
    """A file of twenty records."""
    path = tmp_path_factory.mktemp("data") / "raw.jsonl"
    rows = [{"id": r.id, "category": r.category, "questions": r.questions, "answers": r.answers} for r in records]
    files.write_jsonl(path, rows)
    return path


@pytest.fixture(scope="module")
def data(raw):
    """The same, prepared."""
    prepare([raw], raw.with_name("prepared"), PreparationOptions())
    return raw.with_name("prepared")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, neox_folder):
    """nf4, LoRA with dropout, accumulation; saves and logs out of step with each other and with the epochs."""
    path = tmp_path_factory.mktemp("recipe") / "kills.yaml"
    values = {"model": str(neox_folder), "base_precision": "nf4", "max_length": 256, "pack_length": 256}
    values |= {"global_batch_size": 2, "micro_batch_size": 1, "recompute": "none", "learning_rate": 1e-2}
    values |= {"max_steps": 40, "logging_steps": 3, "save_steps": 5, "optim": "adamw_torch"}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def outcome(run):
    """Everything that a disturbance must not change: the adapter's files, the log but for the clock, the counts."""
    log = [{k: v for k, v in line.items() if k not in CLOCK} for line in files.read_jsonl(run / files.LOG)]
    summary = files.read_json(run / files.TRAINING)
    adapter = {path.name: path.read_bytes() for path in (run / files.ADAPTER).iterdir()}
    return adapter, log, [summary[key] for key in ("finished", "steps", "epochs", "tokens")]


class Ranks:
    """The ranks of a training as a launcher would start and end them, without the launcher."""

    def __init__(self, server, processes, arguments, log):
        self.server, self.arguments, self.log = server, arguments, log
        self.processes = processes

    def start(self):
        environments = [{}]
        if self.processes > 1:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = str(listener.getsockname()[1])
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(self.processes)}
            shared["LOCAL_WORLD_SIZE"] = shared["WORLD_SIZE"]
            environments = [{**shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(self.processes)]
        self.printed_before = len(self.log.read_text(encoding="utf-8")) if self.log.exists() else 0
        self.started = [self.server.start(self.arguments, self.log, **env) for env in environments]

    def kill(self, which):
        for process in which:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def wait(self, seconds=None):
        """The ranks' exit codes. Who lives on after `seconds` is killed, as torchrun does once another rank is dead.

        That may only be a rank that waits for one that was killed before they met.
        """
        codes = [self.server.wait(process, seconds) for process in self.started]
        if None in codes:
            printed = self.log.read_text(encoding="utf-8")[self.printed_before :]
            assert "data: " not in printed, f"a rank outlived another by {seconds} s\n{printed[-3000:]}"
            self.kill(p for p, c in zip(self.started, codes, strict=True) if c is None)
            codes = [self.server.wait(p) if c is None else c for p, c in zip(self.started, codes, strict=True)]
        return codes


def soak(server, recipe, data, folder, *, processes, kills, seed):
    """Kill runs at random moments, `kills` times in all; every run is finished and compared. Returns runs compared."""
    rng, done, compared = random.Random(seed), 0, 0

    def ranks(name):
        return Ranks(server, processes, [recipe, "--data", data, "--run", folder / name], folder / f"{name}.txt")

    undisturbed = ranks("undisturbed")
    began = time.monotonic()
    undisturbed.start()
    assert set(undisturbed.wait()) == {0}, undisturbed.log.read_text()[-3000:]
    whole = time.monotonic() - began
    expected = outcome(folder / "undisturbed")
    while done < kills:
        name, here = f"run-{compared}", min(KILLS_A_RUN, kills - done)
        disturbed = ranks(name)
        for start in range(here):
            disturbed.start()
            lived = rng.uniform(0, whole)
            time.sleep(lived)
            disturbed.kill(rng.choice([disturbed.started, [rng.choice(disturbed.started)]]))
            codes = disturbed.wait(LAUNCHER_SECONDS)
            if set(codes) == {0}:
                whole = min(whole, lived) if start == 0 else whole  # the machine is less busy than it was
                break
            assert -signal.SIGKILL in codes, f"{codes}, seed {seed}\n{disturbed.log.read_text()[-3000:]}"
            done += 1
        disturbed.start()
        assert set(disturbed.wait()) == {0}, disturbed.log.read_text()[-3000:]
        adapter, log, counts = outcome(folder / name)
        assert log == expected[1], f"{name}, seed {seed}"
        assert counts == expected[2], f"{name}, seed {seed}"
        assert adapter == expected[0], f"{name}, seed {seed}"
        assert "damaged" not in disturbed.log.read_text()
        shutil.rmtree(folder / name)
        compared += 1
    print(f"{done} kills of {processes} process(es), {compared} runs compared, 0 lost")


@pytest.mark.parametrize("processes", [1, 2])
def test_kills_at_random_moments_lose_nothing(server, recipe, data, tmp_path, processes):
    soak(server, recipe, data, tmp_path, processes=processes, kills=10, seed=processes)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("processes", [1, 2])
def test_200_kills_at_random_moments_lose_nothing(server, recipe, data, tmp_path, processes):
    soak(server, recipe, data, tmp_path, processes=processes, kills=200, seed=random.randrange(10**6))


def kill_at_touches(server, recipe, raw, folder, *, share):
    """Kill a short training from raw files just before every `share`-th touch of its files, finish it and compare.

    The touches go from the lock and the preparation of the data over the checkpoints to the final weights.
    """
    here, finished = folder / "here", folder / "finished"
    arguments = [recipe, "--data", raw, "--run", here / "run", "--max-steps", "4", "--save-steps", "2"]
    log, data = folder / "log.txt", {"LLM_QA_DATA": str(here / "data")}
    assert server.run(arguments, log, **data) == 0, log.read_text()[-3000:]

    def everything():
        return outcome(here / "run"), sorted(path.name for path in (here / "run").rglob("*"))

    expected = everything()
    here.rename(finished)
    moment = killed = 0
    while True:
        moment += share
        code = server.run(arguments, log, die_at=(moment, here), **data)
        if code == 0:
            break
        assert code == -signal.SIGKILL, log.read_text()[-3000:]
        killed += 1
        where = f"killed at touch {moment}\n{log.read_text()[-3000:]}"
        assert server.run(arguments, log, **data) == 0, where
        assert everything() == expected, where
        shutil.rmtree(here)
    print(f"{moment:,} touches, {killed} of them died at, 0 lost")
    return killed


def test_a_kill_at_every_eighth_touch_of_files_loses_nothing(server, recipe, raw, tmp_path):
    assert kill_at_touches(server, recipe, raw, tmp_path, share=8) > 20


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_kill_at_every_touch_of_files_loses_nothing(server, recipe, raw, tmp_path):
    assert kill_at_touches(server, recipe, raw, tmp_path, share=1) > 160


def test_the_server_trains_as_the_command_line_does(server, recipe, data, tmp_path):
    short = ["--max-steps", "4"]
    done = run_script("scripts/train.py", recipe, "--data", data, "--run", tmp_path / "script", *short)
    assert done.returncode == 0, done.stderr
    code = server.run([recipe, "--data", data, "--run", tmp_path / "forked", *short], tmp_path / "log.txt")
    assert code == 0
    assert outcome(tmp_path / "script") == outcome(tmp_path / "forked")


def test_a_chain_of_short_runs_equals_one_long_run(server, recipe, data, tmp_path):
    """--max-hours is spent again and again; schedule, log and adapter are those of the whole training."""
    log, whole = tmp_path / "log.txt", tmp_path / "whole"
    began = time.monotonic()
    assert server.run([recipe, "--data", data, "--run", whole], log) == 0
    budget = (time.monotonic() - began) / 4 / 3600  # hours: a fast machine has to stop several times too
    codes = []
    for _ in range(60):
        arguments = [recipe, "--data", data, "--run", tmp_path / "chain", "--max-hours", str(budget)]
        codes.append(server.run(arguments, log))
        if codes[-1] != 75:
            break
    assert codes[-1] == 0
    assert codes.count(75) >= 2
    assert "(max_hours " in log.read_text(encoding="utf-8")
    chain, one = outcome(tmp_path / "chain"), outcome(whole)
    card = ("README.md",)  # names the budget
    assert {k: v for k, v in chain[0].items() if k not in card} == {k: v for k, v in one[0].items() if k not in card}
    assert chain[1:] == one[1:]


def test_secrets_of_the_environment_are_written_nowhere(server, recipe, data, tmp_path):
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD")
    secrets = {name: f"sekret-{name.lower()}-0123456789abcdef" for name in names}
    log, run = tmp_path / "log.txt", tmp_path / "run"
    arguments = [recipe, "--data", data, "--run", run, "--max-steps", "3", "--save-steps", "1"]
    assert server.run(arguments, log, **secrets) == 0
    written = [log, *(path for path in run.rglob("*") if path.is_file())]
    assert len(written) > 15
    for path in written:
        text = path.read_bytes()
        assert not [name for name, secret in secrets.items() if secret.encode() in text], path


def test_two_trainings_of_one_run_folder(server, recipe, data, tmp_path):
    """The second is refused with code 2 while the first goes on, and nothing of the first is touched."""
    arguments = [recipe, "--data", data, "--run", tmp_path / "run"]
    first = server.start(arguments, tmp_path / "first.txt")
    while not (tmp_path / "run" / files.LOG).exists():
        time.sleep(0.02)
    os.kill(first, signal.SIGSTOP)
    try:
        assert server.run(arguments, tmp_path / "second.txt") == 2
        assert f"is being trained by process {first} on " in (tmp_path / "second.txt").read_text(encoding="utf-8")
    finally:
        os.kill(first, signal.SIGCONT)
    assert server.wait(first) == 0
