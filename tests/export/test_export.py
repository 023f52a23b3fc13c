"""Exported folders: equal to peft's own merge, readable elsewhere, in bounded memory, with sentences for what fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import small_config
from command_line import run_script
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llm_qa import files
from llm_qa.config.recipe import make_recipe
from llm_qa.console import UserError
from llm_qa.data.prompts import encode_prompts
from llm_qa.export import checkpoint
from llm_qa.export.model import export_model
from llm_qa.models.loading import load_tokenizer, save_tokenizer
from llm_qa.models.lora import add_lora
from llm_qa.models.stored_names import loaded_names
from llm_qa.training.run_folder import open_run, save_final

FAMILIES = ("gpt_neox", "gpt2", "llama", "qwen3")


def make_base(folder: Path, tokenizer, model_type: str, dtype: torch.dtype = torch.float32) -> Path:
    """A random model of a family with the tokenizer, as save_pretrained writes them."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(model_type, len(tokenizer), initializer_range=0.2))
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def make_run(run: Path, base: Path, tokenizer, **values) -> Path:
    """A run as train.py leaves it, whose adapter is random and not near zero, or whose weights are the base's."""
    values = values or {"base_precision": "16bit", "lora_r": 4}
    recipe = make_recipe({"model": str(base), **values}, source="test")
    signature = {"recipe": recipe.to_dict(), "data_sha256": "none", "processes": 1}
    open_run(run, recipe, run / "data", signature, resume="auto")
    model = AutoModelForCausalLM.from_pretrained(base)
    if recipe.method == "lora":
        model = add_lora(model, recipe)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    parameter.normal_(std=0.3)
    summary = {"finished": True, "kept": None, "steps": 1, "epochs": 1, "records": 2, "pairs": 2, "tokens": 9}
    files.write_json(run / files.TRAINING, summary)
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    save_final(model, weights, tokenizer, run, recipe, summary)
    return run


def logits(model, tokenizer) -> torch.Tensor:
    ids = torch.tensor(encode_prompts(tokenizer, [("마루는 언제 까나요?", "")]))
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_give_the_logits_of_peft_s_own_merge(tmp_path, tokenizer, family):
    base = make_base(tmp_path / "base", tokenizer, family)
    run = make_run(tmp_path / "run", base, tokenizer)
    exported = export_model(run, tmp_path / "out", "card")
    assert exported.left_out == []
    untuned = AutoModelForCausalLM.from_pretrained(base)
    before = logits(untuned, tokenizer)
    theirs = logits(PeftModel.from_pretrained(untuned, run / files.ADAPTER).merge_and_unload(), tokenizer)
    mine = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out", use_safetensors=True), tokenizer)
    assert (theirs - before).abs().max() > 0.1, "the adapter changes answers"
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_the_sum_is_rounded_once_to_the_base_s_own_16_bits(tmp_path, tokenizer):
    base = make_base(tmp_path / "base", tokenizer, "gpt_neox", torch.float16)
    run = make_run(tmp_path / "run", base, tokenizer)
    export_model(run, tmp_path / "out", "card")
    export_model(run, tmp_path / "wide", "card", dtype="fp32")
    half, wide, before = (load_file(tmp_path / name / checkpoint.WEIGHTS) for name in ("out", "wide", "base"))
    assert half.keys() == wide.keys() == before.keys()
    for name, tensor in wide.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(half[name], tensor.half())
        changed = not torch.equal(half[name], before[name])
        assert changed == any(
            layer in name for layer in ("query_key_value.w", "dense.w", "dense_h_to_4h.w", "dense_4h_to_h.w")
        )


def test_config_tokenizer_and_card_are_as_others_read_them(tmp_path, tokenizer):
    run = make_run(tmp_path / "run", make_base(tmp_path / "base", tokenizer, "gpt_neox"), tokenizer)
    export_model(run, tmp_path / "out", "the card")
    config = files.read_json(tmp_path / "out" / "config.json")
    assert (config["rotary_pct"], config["rotary_emb_base"]) == (0.5, 10000.0)
    assert config["use_cache"] is True
    assert config["architectures"] == ["GPTNeoXForCausalLM"]
    assert config["eos_token_id"] == tokenizer.eos_token_id
    generation = files.read_json(tmp_path / "out" / "generation_config.json")
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert files.read_json(tmp_path / "out" / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    asked = [{"role": "user", "content": "마루는 언제 까나요?"}]
    reopened = load_tokenizer(tmp_path / "out")
    ids = reopened.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert ids == encode_prompts(tokenizer, [("마루는 언제 까나요?", "")])[0]
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == "the card"


def test_a_fully_trained_model_is_written_as_it_is(tmp_path, tokenizer):
    run = make_run(
        tmp_path / "run",
        make_base(tmp_path / "base", tokenizer, "gpt_neox"),
        tokenizer,
        method="full",
        base_precision="fp32",
    )
    config = files.read_json(run / files.MODEL / "config.json")
    assert config["rotary_pct"] == 0.5, "model/ is read rightly by transformers 4 too"
    export_model(run, tmp_path / "out", "card")
    before, after = (load_file(folder / checkpoint.WEIGHTS) for folder in (run / files.MODEL, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_memory_holds_a_shard_and_not_the_model(tmp_path, tokenizer, monkeypatch):
    run = make_run(tmp_path / "run", make_base(tmp_path / "base", tokenizer, "gpt_neox"), tokenizer)
    written = []
    save = checkpoint.save_file

    def watch(tensors, path, **more):
        written.append(sum(tensor.nbytes for tensor in tensors.values()))
        save(tensors, path, **more)

    monkeypatch.setattr(checkpoint, "save_file", watch)
    largest = max(tensor.nbytes for tensor in load_file(tmp_path / "base" / checkpoint.WEIGHTS).values())
    exported = export_model(run, tmp_path / "out", "card", shard_bytes=10_000)
    assert len(written) > 5
    assert max(written) <= max(10_000, largest)
    assert sum(written) == exported.weight_bytes
    index = files.read_json(tmp_path / "out" / checkpoint.INDEX)
    assert index["metadata"]["total_size"] == exported.weight_bytes
    export_model(run, tmp_path / "whole", "card")
    in_shards, whole = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("out", "whole"))
    assert torch.equal(logits(in_shards, tokenizer), logits(whole, tokenizer))


def test_buffers_of_old_checkpoints_are_left_out_and_a_missing_weight_is_named(tmp_path, tokenizer):
    base = make_base(tmp_path / "base", tokenizer, "gpt_neox")
    run = make_run(tmp_path / "run", base, tokenizer)
    weights = load_file(base / checkpoint.WEIGHTS)
    old = {**weights, "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}
    save_file(old, base / checkpoint.WEIGHTS, metadata={"format": "pt"})
    exported = export_model(run, tmp_path / "out", "card")
    assert exported.left_out == ["gpt_neox.layers.0.attention.masked_bias"]
    del weights["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    save_file(weights, base / checkpoint.WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"has no gpt_neox\.layers\.1\.mlp\.dense_h_to_4h\.weight"):
        export_model(run, tmp_path / "second", "card")
    assert not list(tmp_path.glob(".*.part"))
    assert not (tmp_path / "second").exists()


def test_another_base_and_a_quantised_one_are_refused(tmp_path, tokenizer):
    base = make_base(tmp_path / "base", tokenizer, "gpt_neox")
    run = make_run(tmp_path / "run", base, tokenizer)
    config = files.read_json(base / "config.json")
    files.write_json(base / "config.json", {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    with pytest.raises(UserError, match="is itself quantised"):
        export_model(run, tmp_path / "out", "card")
    torch.manual_seed(0)
    wider = small_config("gpt_neox", len(tokenizer), intermediate_size=64)
    AutoModelForCausalLM.from_config(wider).save_pretrained(base)
    with pytest.raises(UserError, match="does not fit the base's weight"):
        export_model(run, tmp_path / "out", "card")


def test_a_tensor_is_known_by_the_name_that_loading_gives_it(tokenizer):
    model = AutoModelForCausalLM.from_config(small_config("gpt_neox", len(tokenizer)))
    assert loaded_names(model, ["embed_out.weight", "gpt_neox.layers.0.attention.masked_bias"]) == {
        "embed_out.weight": "lm_head.weight"
    }
    bare = AutoModelForCausalLM.from_config(small_config("gpt2", len(tokenizer)))
    assert loaded_names(bare, ["h.0.attn.c_attn.weight"]) == {
        "h.0.attn.c_attn.weight": "transformer.h.0.attn.c_attn.weight"
    }


def test_the_script_writes_a_card_and_refuses_in_a_sentence(tmp_path, tokenizer):
    run = make_run(tmp_path / "run", make_base(tmp_path / "base", tokenizer, "gpt_neox"), tokenizer)
    done = run_script("scripts/export.py", "--run", run, "--out", tmp_path / "out", "--no-evaluate")
    assert done.returncode == 0, done.stderr
    assert "GiB of weights" in done.stdout
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "### 질문: <질문>" in card
    assert "was not evaluated" in card
    again = run_script("scripts/export.py", "--run", run, "--out", tmp_path / "out")
    assert again.returncode == 2
    assert "is there already" in again.stderr
    nothing = run_script("scripts/export.py", "--run", tmp_path)
    assert nothing.returncode == 2
    assert "is not a run" in nothing.stderr


def test_two_exports_to_one_folder_at_once_do_not_share_what_is_unfinished(tmp_path):
    out = tmp_path / "out"
    stale = tmp_path / ".out.part"
    stale.mkdir()
    (stale / "shard-0.safetensors").write_text("of an export that was killed")
    with checkpoint.staged_folder(out) as staged:
        assert list(staged.iterdir()) == []
        (staged / "config.json").write_text("{}")
        refused = pytest.raises(UserError, match=r"--out .*out is being written by another export: wait for it")
        with refused, checkpoint.staged_folder(out):
            pytest.fail("both write")
        assert (staged / "config.json").is_file(), "the second has not touched the first one's"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


REOPEN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
assert __version__.startswith("4."), __version__
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
asked = [{"role": "user", "content": "마루는 언제 까나요?"}]
ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True)
model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
with torch.no_grad():
    print(json.dumps({"ids": list(ids), "logits": model(input_ids=torch.tensor([ids])).logits[0, -1].tolist()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("TRANSFORMERS_4"), reason="set TRANSFORMERS_4 to a folder with transformers 4.57"
)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_4_reads_the_same_tokens_and_logits(tmp_path, tokenizer, family):
    run = make_run(tmp_path / "run", make_base(tmp_path / "base", tokenizer, family), tokenizer)
    export_model(run, tmp_path / "out", "card")
    environment = {**os.environ, "PYTHONPATH": os.environ["TRANSFORMERS_4"]}
    done = subprocess.run(
        [sys.executable, "-c", REOPEN, str(tmp_path / "out")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert theirs["ids"] == encode_prompts(tokenizer, [("마루는 언제 까나요?", "")])[0]
    mine = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), tokenizer)[0, -1]
    torch.testing.assert_close(torch.tensor(theirs["logits"]), mine, atol=2e-6, rtol=1e-5)
