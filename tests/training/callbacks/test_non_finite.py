"""A loss or gradient that is no number: training stops before the weights change and names where it came from."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from command_line import run_script
from safetensors.torch import load_file, save_file
from transformers import TrainerControl, TrainerState

from llm_qa import files
from llm_qa.data.packing import PackedDataset, collate_packs, tokenize_records
from llm_qa.data.preparation import prepare
from llm_qa.data.preparation_options import PreparationOptions
from llm_qa.training.callbacks.non_finite import NonFiniteError, StopOnNonFinite
from llm_qa.training.checkpoint.resume import all_checkpoints, invalid_reasons

ARGUMENTS = SimpleNamespace(fp16=False, process_index=0)


def state(step: int) -> TrainerState:
    made = TrainerState()
    made.global_step = step
    return made


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_stops_the_run_before_the_update(bad):
    model = torch.nn.Linear(2, 2)
    model.weight.grad = torch.tensor([[1.0, bad], [0.0, 0.0]])
    with pytest.raises(NonFiniteError, match="Step 8: a gradient is not a finite number, so"):
        StopOnNonFinite().on_pre_optimizer_step(ARGUMENTS, state(7), TrainerControl(), model=model)
    model.weight.grad = torch.ones(2, 2)
    StopOnNonFinite().on_pre_optimizer_step(ARGUMENTS, state(7), TrainerControl(), model=model)


@pytest.mark.parametrize("key", ["loss", "eval_loss"])
def test_a_loss_that_is_no_number_stops_the_run(key):
    with pytest.raises(NonFiniteError, match="not a finite number"):
        StopOnNonFinite().on_log(ARGUMENTS, state(7), TrainerControl(), logs={key: float("nan")})


@pytest.mark.parametrize(("norm", "overflow"), [(float("inf"), False), (float("nan"), False), (1.0, True)])
def test_deepspeed_is_asked_what_it_found_and_told_to_look_in_every_precision(norm, overflow):
    engine = SimpleNamespace(_global_grad_norm=norm, overflow=overflow, check_grad_overflow=False)
    optimizer, stop = SimpleNamespace(optimizer=engine), StopOnNonFinite()
    stop.on_train_begin(ARGUMENTS, state(0), TrainerControl(), model=torch.nn.Linear(1, 1), optimizer=optimizer)
    assert engine.check_grad_overflow
    with pytest.raises(NonFiniteError):
        stop.on_pre_optimizer_step(ARGUMENTS, state(7), TrainerControl(), optimizer=optimizer)
    engine._global_grad_norm, engine.overflow = 1.0, False
    stop.on_pre_optimizer_step(ARGUMENTS, state(7), TrainerControl(), optimizer=optimizer)


def test_the_records_of_the_bad_pass_are_named(records, tokenizer):
    pairs, _ = tokenize_records(tokenizer, records, 256)
    packs = PackedDataset(pairs, 256, "answer", seed=1)
    stop = StopOnNonFinite(packs)
    for index, loss in ((0, 1.0), (3, float("nan")), (1, 1.0)):
        batch = collate_packs([packs[index], packs[index + 5]], tokenizer.pad_token_id)
        stop.passes.append((batch["input_ids"], batch["position_ids"], torch.tensor(loss)))
    expected = {pairs.record_ids[document] for index in (3, 8) for document in packs.packs[index]}
    told = stop.where(rank=2)
    assert told.startswith("rank 2, forward pass 2 of 3, records R")
    assert set(told.partition("records ")[2].split(", ")) == expected


@pytest.fixture(scope="module")
def poisoned(neox_folder, records, tokenizer, tmp_path_factory):
    """A recipe of a model whose embedding of one token is NaN, with data in which one record has that token."""
    folder = tmp_path_factory.mktemp("poisoned")
    rare = "킁"
    rows = [{"id": r.id, "questions": r.questions, "answers": r.answers} for r in records]
    texts = [text for row in rows for text in (*row["questions"], *row["answers"])]
    before = {token for text in texts for token in tokenizer(text).input_ids}
    rows[7]["answers"] = [f"{rare} 하나", f"{rare} 둘"]
    poison = next(t for t in tokenizer(f" {rare}").input_ids if t not in before)
    files.write_jsonl(folder / "data.jsonl", rows)
    prepare([folder / "data.jsonl"], folder / "data", PreparationOptions(validation=0, test=0))
    model = folder / "model"
    model.mkdir()
    for path in neox_folder.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if name.endswith("embed_in.weight"))
    weights[name][poison] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    values = {"model": str(model), "base_precision": "fp32", "max_length": 256, "pack_length": 256}
    values |= {"global_batch_size": 2, "micro_batch_size": 1, "recompute": "none", "learning_rate": 1e-3, "seed": 3}
    values |= {"max_steps": 30, "save_steps": 1, "logging_steps": 1, "save_total_limit": 100}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def check_stopped(done, run):
    """What a run that met the poison leaves behind."""
    assert done.returncode == 1, done.stderr[-3000:]
    sentence = next(line for line in done.stderr.splitlines() if line.startswith("error: Step "))
    step = int(sentence.split()[2].rstrip(":"))
    assert "a gradient is not a finite number (rank " in sentence
    assert "R07" in sentence
    saved = all_checkpoints(run / "checkpoints")
    assert [int(path.name.split("-")[1]) for path in saved] == list(range(1, step)), "none of the bad step"
    for path in saved:
        assert not invalid_reasons(path)
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path / "adapter_model.safetensors").values())


def test_a_poisoned_batch_ends_the_run_with_its_record_named(poisoned, tmp_path):
    arguments = ["--data", poisoned / "data", "--run", tmp_path / "run"]
    done = run_script("tests/patient_train.py", poisoned / "recipe.yaml", *arguments)
    assert "Traceback" not in done.stderr
    check_stopped(done, tmp_path / "run")


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_deepspeed_skips_the_update_and_the_run_ends_the_same_way(strategy, poisoned, tmp_path):
    config = ["-m", "accelerate.commands.launch", "--quiet", "--config_file", f"accelerate_configs/{strategy}.yaml"]
    arguments = [poisoned / "recipe.yaml", "--data", poisoned / "data", "--run", tmp_path / "run"]
    done = run_script(*config, "--num_processes", "2", "tests/patient_train.py", *arguments, DS_ACCELERATOR="cpu")
    check_stopped(done, tmp_path / "run")
