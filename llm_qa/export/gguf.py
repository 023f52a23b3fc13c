"""An exported folder as a GGUF file for llama.cpp and Ollama, by llama.cpp's own converter, and Ollama's Modelfile.

The converter knows a tokenizer's pre-tokenizer, the rule that cuts a text before merges, by a hash over the tokens of a
test text, and refuses tokenizers that it has not seen; the Korean ones of polyglot's kind are not in its list. Their
rule is read from tokenizer.json instead, where llama.cpp has the same under a name; any other is refused. What was
written is read back and compared with the config.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.data.chat import uses_chat
from llm_qa.data.prompts import show_prompt

CONVERTER = "convert_hf_to_gguf.py"
BYTE_LEVEL = {"type": "ByteLevel", "use_regex": True}
# Pre-tokenizers of tokenizer.json -> llama.cpp's name of the same rule (src/llama-vocab.cpp).
PRE_TOKENIZERS = (
    ([BYTE_LEVEL], "gpt-2"),
    ([{"type": "Digits", "individual_digits": True}, BYTE_LEVEL], "smollm"),
)
# Runs in another process with llama.cpp's folder as its own: arguments folder, file, type of numbers, pre-tokenizer.
CONVERT = f"""
import json, pathlib, runpy, sys
llama_cpp, folder, out, numbers, rule = sys.argv[1:]
sys.path[:0] = [llama_cpp, llama_cpp + "/gguf-py"]
from conversion.base import ModelBase, TextModel
as_transformers_5_reads = ModelBase.load_hparams
def load_hparams(folder, is_mistral_format):  # transformers 5 drops the keys that it has renamed, rotary_pct too
    written = json.loads((pathlib.Path(folder) / "config.json").read_text(encoding="utf-8"))
    return {{**written, **as_transformers_5_reads(folder, is_mistral_format)}}
ModelBase.load_hparams = staticmethod(load_hparams)
known = TextModel.get_vocab_base_pre
def get_vocab_base_pre(self, tokenizer):
    try:
        return known(self, tokenizer)
    except NotImplementedError:
        if not rule:
            raise
        return rule
TextModel.get_vocab_base_pre = get_vocab_base_pre
sys.argv = ["{CONVERTER}", folder, "--outfile", out, "--outtype", numbers]
runpy.run_path(llama_cpp + "/{CONVERTER}", run_name="__main__")
"""
READ = """
import json, sys
sys.path.insert(0, sys.argv[1] + "/gguf-py")
from gguf import GGUFReader
fields = GGUFReader(sys.argv[2]).fields.items()
print(json.dumps({name: field.contents() for name, field in fields if not name.startswith("tokenizer.ggml.token")}))
"""


def check_llama_cpp(llama_cpp: Path) -> None:
    """UserError where a folder is not one of llama.cpp's sources with the converter that is used."""
    if not (llama_cpp / CONVERTER).is_file() or not (llama_cpp / "conversion").is_dir():
        raise UserError(
            f"--gguf {llama_cpp} has no {CONVERTER} and conversion/ in it: name a folder of llama.cpp's sources, as "
            "git clone https://github.com/ggml-org/llama.cpp makes one."
        )


def write_gguf(folder: Path, llama_cpp: Path, tokenizer, numbers: str, max_new_tokens: int) -> Path:
    """Convert an exported folder to `<folder>/<name>.gguf` of `numbers` (f16, bf16, q8_0), and check what it says.

    Writes the Modelfile beside it, with answers of at most `max_new_tokens`. Raises UserError with the converter's last
    line where it refuses the model.
    """
    check_llama_cpp(llama_cpp)
    out = folder / f"{folder.resolve().name}.gguf"
    rule = pre_tokenizer_name(json.loads(tokenizer.backend_tokenizer.to_str())) or ""
    run_python(CONVERT, llama_cpp.resolve(), folder, out, numbers, rule)
    config = files.read_json(folder / "config.json")
    check_metadata(json.loads(run_python(READ, llama_cpp.resolve(), out)), config, out)
    ends = config["eos_token_id"] if isinstance(config["eos_token_id"], list) else [config["eos_token_id"]]
    stops = tokenizer.convert_ids_to_tokens(ends)
    files.write_text(folder / "Modelfile", modelfile(tokenizer, out.name, stops, max_new_tokens))
    return out


def run_python(code: str, *arguments: Path | str) -> str:
    """The output of a program in Python of its own; UserError with its last line where it fails."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        last = (done.stderr.strip() or "it says nothing").splitlines()[-1]
        raise UserError(f"llama.cpp's converter did not finish ({last}): the exported folder itself is complete.")
    return done.stdout


def pre_tokenizer_name(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name of the pre-tokenizer of a tokenizer.json; None where it is not one of PRE_TOKENIZERS."""
    rule = tokenizer.get("pre_tokenizer") or {}
    parts = rule.get("pretokenizers", [rule])
    for wanted, name in PRE_TOKENIZERS:
        same = len(parts) == len(wanted) and all(
            part.get(key) == value for part, keys in zip(parts, wanted, strict=True) for key, value in keys.items()
        )
        if same and not parts[-1].get("add_prefix_space"):
            return name
    return None


def check_metadata(found: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    """RuntimeError where a GGUF file says otherwise than the config from which it was made."""
    name = found["general.architecture"]
    expected = {f"{name}.context_length": config.get("max_position_embeddings") or config.get("n_positions")}
    if config["model_type"] == "gpt_neox":
        width = config["hidden_size"] // config["num_attention_heads"]
        expected[f"{name}.rope.dimension_count"] = int(config["rotary_pct"] * width)
        expected[f"{name}.use_parallel_residual"] = config["use_parallel_residual"]
        found = {f"{name}.rope.freq_base": 10000.0, **found}  # what llama.cpp takes where the converter writes none
        expected[f"{name}.rope.freq_base"] = config["rotary_emb_base"]
    eos = config["eos_token_id"]
    expected["tokenizer.ggml.eos_token_id"] = eos[0] if isinstance(eos, list) else eos
    for key, value in expected.items():
        if found.get(key) != value:
            raise RuntimeError(f"{path} says {key} = {found.get(key)!r}, and the model's config {value!r}.")


def modelfile(tokenizer, gguf_name: str, ends: Sequence[str], max_new_tokens: int) -> str:
    """Ollama's Modelfile: the prompt that was trained, greedy answers, and the tokens that end them."""
    question = "\ue000"
    alone = show_prompt(tokenizer, question).replace(question, "{{ .Prompt }}")
    system = "\ue001"
    with_system = show_prompt(tokenizer, question, (("system", system),))
    with_system = with_system.replace(question, "{{ .Prompt }}").replace(system, "{{ .System }}")
    if uses_chat(tokenizer) and tokenizer.bos_token:  # llama.cpp adds it by itself
        alone, with_system = (text.removeprefix(tokenizer.bos_token) for text in (alone, with_system))
    stops = "".join(f'PARAMETER stop "{end}"\n' for end in ends)
    return f'''FROM ./{gguf_name}
TEMPLATE """{{{{ if .System }}}}{with_system}{{{{ else }}}}{alone}{{{{ end }}}}"""
{stops}PARAMETER temperature 0
PARAMETER num_predict {max_new_tokens}
'''
