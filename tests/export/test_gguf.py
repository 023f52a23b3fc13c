"""GGUF files: which tokenizers llama.cpp can have, what is compared with the config, Ollama's Modelfile."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from data.test_chat import FAMILIES, make_tokenizer
from export.test_export import make_base, make_run

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.chat import choose_prompt
from llm_qa.export.gguf import check_llama_cpp, check_metadata, modelfile, pre_tokenizer_name, write_gguf
from llm_qa.export.model import export_model
from llm_qa.models.embedded import embedded_model
from llm_qa.models.loading import load_tokenizer

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (BYTE_LEVEL, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]}, "smollm"),
        ({**BYTE_LEVEL, "add_prefix_space": True}, None),
        ({**BYTE_LEVEL, "use_regex": False}, None),
        ({"type": "Sequence", "pretokenizers": [{**DIGITS, "individual_digits": False}, BYTE_LEVEL]}, None),
        ({"type": "Metaspace"}, None),
        (None, None),
    ],
)
def test_a_rule_is_named_only_where_llama_cpp_has_the_same(rule, name):
    assert pre_tokenizer_name({"pre_tokenizer": rule}) == name


def test_a_file_that_says_otherwise_than_the_config_is_an_error():
    config = {"model_type": "gpt_neox", "max_position_embeddings": 64, "hidden_size": 64, "num_attention_heads": 4}
    config |= {"rotary_pct": 0.5, "rotary_emb_base": 10000.0, "use_parallel_residual": True, "eos_token_id": [3, 5]}
    found = {"general.architecture": "gptneox", "gptneox.context_length": 64, "gptneox.rope.dimension_count": 8}
    found |= {"gptneox.use_parallel_residual": True, "tokenizer.ggml.eos_token_id": 3}
    check_metadata(found, config, Path("x.gguf"))
    with pytest.raises(RuntimeError, match="rope.dimension_count = 4, and the model's config 8"):
        check_metadata({**found, "gptneox.rope.dimension_count": 4}, config, Path("x.gguf"))
    with pytest.raises(RuntimeError, match="rope.freq_base = 10000.0, and the model's config 20000"):
        check_metadata(found, {**config, "rotary_emb_base": 20000}, Path("x.gguf"))


def test_the_modelfile_asks_as_the_model_was_trained(tokenizer):
    plain = modelfile(tokenizer, "m.gguf", [tokenizer.eos_token], 200)
    assert plain.startswith("FROM ./m.gguf\n")
    assert '{{ else }}### 질문: {{ .Prompt }}\n\n### 답변:{{ end }}"""' in plain
    assert "### 맥락: {{ .System }}\n\n### 질문" in plain
    assert f'PARAMETER stop "{tokenizer.eos_token}"' in plain
    assert "PARAMETER num_predict 200\n" in plain
    llama = make_tokenizer(*FAMILIES["Llama"])
    choose_prompt(llama, "chat")
    chat = modelfile(llama, "m.gguf", ["<|eot_id|>", "<|end_of_text|>"], 200)
    assert "<|begin_of_text|>" not in chat, "llama.cpp puts it before every prompt"
    assert "<|start_header_id|>user<|end_header_id|>\n\n{{ .Prompt }}<|eot_id|>" in chat
    assert 'PARAMETER stop "<|eot_id|>"\nPARAMETER stop "<|end_of_text|>"\n' in chat


def test_a_folder_that_is_not_llama_cpp_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no convert_hf_to_gguf\.py and conversion/ in it"):
        check_llama_cpp(tmp_path)


ASK = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=128, verbose=False, logits_all=False)
ids = model.tokenize(sys.argv[2].encode(), add_bos=False, special=True)
print(json.dumps({"ids": ids, "answer": [token for token, _ in zip(model.generate(ids, temp=0.0), range(12))]}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LLAMA_CPP"), reason="set LLAMA_CPP to a folder of llama.cpp's sources")
def test_llama_cpp_reads_the_same_tokens_and_answers_the_same(tmp_path):
    """LLAMA_CPP_PYTHON is a Python with llama-cpp-python; without it, only the conversion is tested."""
    tokenizer = load_tokenizer(embedded_model())
    base = make_base(tmp_path / "base", tokenizer, "gpt_neox")
    run = make_run(tmp_path / "run", base, tokenizer)
    export_model(run, tmp_path / "out", "card")
    out = write_gguf(tmp_path / "out", Path(os.environ["LLAMA_CPP"]), tokenizer, "f16", 200)
    assert out.read_bytes()[:4] == b"GGUF"
    assert (tmp_path / "out" / "Modelfile").is_file()
    if not (python := os.environ.get("LLAMA_CPP_PYTHON")):
        pytest.skip("converted and checked; set LLAMA_CPP_PYTHON to ask it too")
    prompt = "### 질문: 2024년 벽지는 왜 들뜨나요?\n\n### 답변:"
    done = subprocess.run([python, "-c", ASK, str(out), prompt], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert theirs["ids"] == tokenizer(prompt)["input_ids"]
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = torch.tensor([theirs["ids"]])
    ours = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert theirs["answer"][:4] == ours[0, ids.shape[1] :].tolist()[:4], "later ones may differ by f16's rounding"
    assert files.read_json(tmp_path / "out" / "config.json")["rotary_pct"] == 0.5
