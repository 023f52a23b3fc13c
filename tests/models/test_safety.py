"""Nothing that comes with a checkpoint runs when it is loaded: each trap here would leave a file if it did."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from llm_qa.config.recipe import make_recipe
from llm_qa.console import UserError
from llm_qa.models.loading import load_base, load_run, load_tokenizer
from llm_qa.models.precision import resolve_precision

FP32 = resolve_precision(make_recipe({"base_precision": "fp32"}), None)


class Trap:
    """An object whose pickle writes a file when it is read."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "code ran")


@pytest.fixture
def marker(tmp_path):
    """The file that no test may find at its end."""
    path = tmp_path / "code-ran"
    yield path
    assert not path.exists()


@pytest.fixture
def folder(tmp_path, neox_folder):
    """A copy of the small base, to be poisoned."""
    return shutil.copytree(neox_folder, tmp_path / "model")


@pytest.fixture
def run(tmp_path, neox_folder):
    """A finished LoRA run of the small base."""
    run = tmp_path / "run"
    base = AutoModelForCausalLM.from_pretrained(neox_folder)
    get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(
        run / "adapter"
    )
    for path in neox_folder.glob("tokenizer*"):
        shutil.copy(path, run / "adapter")
    recipe = {"model": str(neox_folder), "base_precision": "fp32"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return run


def change(path: Path, **values) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **values}), encoding="utf-8")


def code(folder: Path, marker: Path) -> None:
    text = f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n"
    (folder / "evil.py").write_text(text, encoding="utf-8")


def test_the_trap_works(marker):
    torch.save(Trap(marker), marker.with_name("trap.bin"))
    torch.load(marker.with_name("trap.bin"), weights_only=False)
    assert marker.read_text() == "code ran"
    marker.unlink()


def test_a_run_without_traps_loads(run):
    assert load_run(run)


def test_an_adapter_that_is_a_pickle_is_refused(run, marker):
    (run / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({"weight": Trap(marker)}, run / "adapter" / "adapter_model.bin")
    with pytest.raises(
        UserError, match=r"adapter keeps its weights in adapter_model.bin, a pickle, which can run code"
    ):
        load_run(run)


def test_an_adapter_without_weights_is_refused(run):
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter has none: only .safetensors weights are loaded"):
        load_run(run)


@pytest.mark.parametrize("megatron_core", ["evil", "runs.demo.evil"])
def test_an_adapter_cannot_have_a_module_imported(run, marker, monkeypatch, megatron_core):
    """peft imports the module that `megatron_core` names."""
    place = run / "adapter" / Path(*megatron_core.split(".")[:-1])
    place.mkdir(parents=True, exist_ok=True)
    code(place, marker)
    monkeypatch.syspath_prepend(run / "adapter")
    change(run / "adapter" / "adapter_config.json", megatron_config={"a": 1}, megatron_core=megatron_core)
    with pytest.raises(UserError, match="adapter of model .* cannot be loaded"):
        load_run(run)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "consolidated.00.pth"])
def test_a_base_that_is_a_pickle_is_refused(folder, marker, name):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Trap(marker)}, folder / name)
    with pytest.raises(UserError, match=f"keeps its weights in {name}, a pickle, which can run code"):
        load_base(folder, FP32)


def test_a_pickle_beside_safetensors_is_left_alone(folder, marker):
    torch.save({"weight": Trap(marker)}, folder / "pytorch_model.bin")
    torch.save(Trap(marker), folder / "training_args.bin")
    assert load_base(folder, FP32)


@pytest.mark.parametrize("model_type", ["evil", "gpt_neox"])
def test_a_model_with_code_of_its_own_is_refused(folder, marker, model_type):
    code(folder, marker)
    auto_map = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    change(folder / "config.json", model_type=model_type, auto_map=auto_map)
    with pytest.raises(UserError, match=r"config.json asks to run code of its own \(auto_map\), which is never done"):
        load_base(folder, FP32)


@pytest.mark.parametrize("with_json", [True, False])
def test_a_tokenizer_with_code_of_its_own_is_refused(folder, marker, with_json):
    code(folder, marker)
    change(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    if not with_json:
        (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer_config.json asks to run code of its own \(auto_map\)"):
        load_tokenizer(folder)


def test_an_unknown_model_without_auto_map_finds_no_code_either(folder, marker):
    code(folder, marker)
    change(folder / "config.json", model_type="evil")
    with pytest.raises(UserError, match="config of model .* cannot be loaded"):
        load_base(folder, FP32)


def test_code_for_generation_is_not_run(folder, marker):
    (folder / "custom_generate").mkdir()
    code(folder / "custom_generate", marker)
    (folder / "custom_generate" / "evil.py").rename(folder / "custom_generate" / "generate.py")
    model = load_base(folder, FP32)
    model.generate(torch.tensor([[1, 2]]), max_new_tokens=1)


def test_an_adapter_hidden_in_a_base_is_refused(folder, run, marker):
    """transformers would put it on the base without a word."""
    shutil.copy(run / "adapter" / "adapter_config.json", folder)
    torch.save({"weight": Trap(marker)}, folder / "adapter_model.bin")
    with pytest.raises(UserError, match="is an adapter and not a model"):
        load_base(folder, FP32)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "evil.bin", 3])
def test_an_index_cannot_name_other_files(folder, marker, shard):
    torch.save({"weight": Trap(marker)}, folder / "evil.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"weight": shard}}))
    with pytest.raises(UserError, match="which is not a .safetensors file of this folder"):
        load_base(folder, FP32)
