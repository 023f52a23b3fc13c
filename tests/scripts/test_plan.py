"""plan.py by its command line: what fits, what is marked, and one sentence for what it cannot plan."""

import json
import subprocess
from pathlib import Path

import pytest
from command_line import ROOT, run_script

from llm_qa.config.recipe import load_recipe
from llm_qa.models.precision import BITSANDBYTES_CAPABILITY
from llm_qa.models.shapes import SHAPES
from llm_qa.planning import ways
from llm_qa.planning.dry_run import meta_model
from llm_qa.planning.dry_run import sizes_of as sizes_of_model
from llm_qa.planning.known_gpus import GPUS, OLDEST
from llm_qa.planning.measured import MEASURED
from llm_qa.planning.memory import PROCESS_BYTES
from llm_qa.planning.ways import Job, all_plans, best_of, sizes_of


def planned(*flags) -> str:
    done = run_script("scripts/plan.py", *flags, "--calibration", "no_such_file.json")
    assert done.returncode == 0, done.stderr
    return done.stdout


def job(gpu, gpus=1, machines=1, **more):
    return Job("EleutherAI/polyglot-ko-12.8b", GPUS[gpu], gpus, machines, 476_560, 3, **more)


def test_the_table_fits_80_columns_and_marks_the_fastest():
    for more in (["--hours", "12"], []):
        text = planned("--pairs", "6440", "--gpu", "H100:2", *more)
        table = text[text.index("  way") : text.index("GiB: of each")].splitlines()
        assert max(map(len, table)) <= 80
    assert sum(line.startswith("*") for line in table) == 1
    assert "  full, DDP                144.2    28  40/40      1  70.3 over" in text
    assert "within 15% of what was measured on this GPU" in text


@pytest.mark.parametrize(
    ("gpu", "factor", "words"),
    [
        ("H100", 1.15, "times: within 15% of what was measured on this GPU;"),
        ("RTX 4090", 2, "as this GPU was not measured: they may be off by a factor of 2;"),
        ("T4:2", 4, "as this GPU was not measured: they may be off by a factor of 4;"),
    ],
)
def test_how_far_times_may_be_off_is_said(gpu, factor, words):
    flags = ("--pairs", "6440", "--gpu", gpu, "--model", "polyglot-ko-5.8b")
    assert words in planned(*flags)
    assert json.loads(planned(*flags, "--json"))["uncertainty"] == factor


def test_json_holds_every_way_with_its_parts():
    found = json.loads(planned("--pairs", "6440", "--gpu", "RTX 4090", "--json"))
    assert found["tokens"] == 6440 * 74
    best = [plan for plan in found["plans"] if plan["best"]]
    assert len(best) == 1
    assert best[0]["fits"]
    assert best[0]["gib"] == pytest.approx(sum(best[0]["parts"].values()))
    assert best[0]["command"].startswith("make train RECIPE=scripts/recipes/qlora_12.8b.yaml")


def test_raw_and_prepared_data_are_counted(tmp_path):
    raw = tmp_path / "faq.csv"
    raw.write_text(
        "질문,답변\n" + "".join(f"{n}번은 왜 그런가요?,{n}번이라서 그렇습니다.\n" for n in range(40)), "utf-8"
    )
    text = planned("--data", raw, "--gpu", "A100")
    assert "40 pairs, of which 80% are trained on" in text
    assert "few to learn from" in text
    assert "times: estimates, as this GPU was not measured: they may be off by a factor of 2;" in text
    done = run_script("scripts/prepare_data.py", raw, "--out", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "32 pairs, estimated" in planned("--data", tmp_path / "data", "--gpu", "A100")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--gpu", "P100"], "compute capability 6.0"),
        (["--gpu", "V100:2"], "compute capability 7.0, and 4-bit weights need 7.5"),
        (["--gpu", "RTX 9999"], "is not in the table"),
        (
            ["--gpu", "T4", "--calibrate"],
            "on the GPU of this machine, so leave --gpu T4 out",
        ),
        (["--gpu", "T4:none"], "is not a number of GPUs"),
        (["--gpu", "T4", "--model", "gpt-5"], "--model must be one of polyglot-ko-1.3b"),
        (["--gpu", "T4", "--memory", "much"], "is not a number of GiB"),
        (["--gpu", "T4", "--hours", "0"], "--hours: 0 is not a number above 0"),
        (["--gpu", "T4", "--data", "nofile.csv"], "nofile.csv does not exist"),
        (["--gpu", "T4", "--data", "a.csv", "--pairs", "3"], "give one of them"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(flags, sentence):
    done = run_script("scripts/plan.py", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_oldest_gpu_that_is_planned_is_the_oldest_that_trains_in_4_bits():
    assert OLDEST == BITSANDBYTES_CAPABILITY


def test_where_nothing_fits_the_nearest_is_named():
    text = planned("--pairs", "100", "--gpu", "T4", "--memory", "6")
    assert "Nothing fits: the nearest, QLoRA nf4 on one GPU, needs 7." in text


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.model_type == "gpt_neox"])
@pytest.mark.parametrize("recipe", ["qlora_12.8b", "full_12.8b"])
def test_weights_on_paper_are_those_of_the_model(name, recipe):
    recipe = load_recipe(f"scripts/recipes/{recipe}.yaml", {"model": name})
    assert sizes_of(SHAPES[name], recipe) == sizes_of_model(meta_model(recipe), recipe)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_every_command_is_one_that_make_and_train_take(gpu, gpus):
    """Paths exist, targets too, and the micro-batch divides a process's share of the global batch."""
    if GPUS[gpu].capability < OLDEST:
        return
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for plan in all_plans(job(gpu, gpus)):
        words = plan.command.split()
        assert f"\n{words[1]}:" in targets
        recipe = next(word.partition("=")[2] for word in words if word.startswith("RECIPE="))
        flags = plan.command.partition('ARGS="')[2].rstrip('"').split()
        values = dict(zip([flag.removeprefix("--").replace("-", "_") for flag in flags[::2]], flags[1::2], strict=True))
        batch = load_recipe(recipe, values).global_batch_size
        assert batch % ((1 if plan.way.engine == "one" else gpus) * plan.micro_batch) == 0


def test_the_same_without_fp8_products_is_planned_where_a_gpu_has_fp8_units():
    for gpu, named in (("RTX 4090", True), ("RTX 3090", False)):
        found = {plan.way.name: plan for plan in all_plans(job(gpu))}
        assert ("QLoRA nf4 bf16" in found) == named
        if named:
            assert "--compute-dtype bf16" in found["QLoRA nf4 bf16"].command
            assert found["QLoRA nf4 bf16"].tokens_per_second < found["QLoRA nf4"].tokens_per_second
            assert found["QLoRA nf4 bf16"].gib == pytest.approx(found["QLoRA nf4"].gib)


def test_more_memory_is_never_slower_and_nothing_that_fits_is_over():
    speeds = []
    for gib in (10, 14.6, 23.5, 39.4, 79.2, 139.8):
        gpu = ways.replace(GPUS["H100"], gib=gib)
        plans = all_plans(Job("EleutherAI/polyglot-ko-12.8b", gpu, 1, 1, 476_560, 3))
        assert all(plan.gib <= 0.94 * gib for plan in plans if plan.fits)
        best = best_of(plans)
        speeds.append(best.tokens_per_second if best else 0.0)
    assert speeds == sorted(speeds)
    assert speeds[1] > 0, "nf4 with every layer recomputed"


@pytest.mark.parametrize("gpu", ["RTX 4090", "H100"])
def test_offload_is_timed_as_an_estimate_and_proposed_last(gpu):
    """The machine's processor updates the weights, whatever the number of GPUs; weights that it holds are read too."""
    text = planned("--pairs", "6440", "--gpu", f"{gpu}:2")
    rows = {line[2:26].strip(): line.split() for line in text.splitlines() if " offload  " in line}
    assert "~" in text.partition("full, full offload")[2].partition("\n")[0]
    assert rows.keys() == {"full, optimizer offload", "full, full offload"}
    plans = {plan.way.where: plan for plan in all_plans(job(gpu, 2)) if plan.way.recipe == "full_12.8b"}
    some, everything = plans["optimizer offload"], plans["full offload"]
    assert everything.tokens_per_second < some.tokens_per_second
    one = next(plan for plan in all_plans(job(gpu)) if plan.way.offload == "optimizer")
    seconds = 16_384 / one.tokens_per_second
    assert 9 < seconds < 60
    assert best_of([everything, plans["DDP"]]) is (everything if everything.fits else None)
    assert not best_of(all_plans(job(gpu, 2))).way.offload


def test_the_machine_s_memory_is_told_of_every_way():
    """A process's libraries; what offload takes; and a whole model before it is written, but of an adapter nothing."""
    gib = {(plan.way.name, plan.way.where): plan.host_gib for plan in all_plans(job("H100", 2))}
    process, weights = PROCESS_BYTES / 2**30, SHAPES["EleutherAI/polyglot-ko-12.8b"].parameters / 2**30
    assert gib["QLoRA nf4", "one GPU"] == pytest.approx(process)
    assert gib["LoRA fp8", "DDP"] == pytest.approx(2 * process)
    assert gib["full", "ZeRO-3"] == pytest.approx(2 * process + 2 * weights)
    assert gib["full", "optimizer offload"] == pytest.approx(2 * process + (2 + 18) * weights)
    assert gib["full", "full offload"] == pytest.approx(2 * process + (2 + 20) * weights)


def test_sessions_are_counted():
    (plan, *_) = all_plans(job("T4", hours=0.5))
    assert plan.sessions == -(-plan.total_hours // 0.5)


def test_the_readme_shows_what_check_prints():
    page = (ROOT / "llm_qa/planning/README.md").read_text(encoding="utf-8")
    assert planned("--check").strip() in page
    for flags in (["T4:2"], ["RTX 4090"]):
        text = planned("--pairs", "6440", "--gpu", *flags, "--hours", "12")
        assert text[: text.index("\nGiB: of each")] in page


def test_make_passes_the_flags_on():
    variables = ["GPU=RTX 4090", "MEMORY=16GiB", "MODEL=polyglot-ko-5.8b", "HOURS=12", "DATA=a.csv", "NUM_MACHINES=2"]
    done = subprocess.run(["make", "-n", "plan", *variables], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = '--data a.csv --gpu "RTX 4090" --memory 16GiB --model polyglot-ko-5.8b --hours 12 --machines 2'
    assert wanted in done.stdout
    assert Path("scripts/plan.py").name in done.stdout


def test_beside_several_gpus_one_of_them_is_planned():
    alone, *others = all_plans(job("H100", 4))
    assert alone.command.startswith("make train ")
    assert alone.tokens_per_second < others[0].tokens_per_second
    (single, *_) = all_plans(job("H100"))
    assert (alone.gib, alone.tokens_per_second) == (single.gib, single.tokens_per_second)


@pytest.mark.parametrize("gpu", ["T4", "RTX 4090", "H100", "H200"])
def test_no_plan_takes_longer_passes_than_were_measured(gpu):
    longest = max(row.tokens for row in MEASURED)
    assert all(plan.micro_batch * 512 <= longest for plan in all_plans(job(gpu)))
