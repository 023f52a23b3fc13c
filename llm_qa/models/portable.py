"""Makes saved folders mean the same to programs other than today's transformers."""

from __future__ import annotations

from pathlib import Path

from llm_qa import files


def add_rotary_keys(folder: str | Path) -> None:
    """Write a GPT-NeoX config's share of rotated dimensions and its base under the names of transformers 4 as well.

    transformers 5 keeps both in `rope_parameters` alone. transformers 4 and llama.cpp's converter look for `rotary_pct`
    and `rotary_emb_base`, and without them take .25 and 10,000 in silence; polyglot-ko's share is .5.
    """
    path = Path(folder) / "config.json"
    config = files.read_json(path)
    if config.get("model_type") != "gpt_neox":
        return
    rope = config.get("rope_parameters") or {}
    named = {"rotary_pct": rope.get("partial_rotary_factor"), "rotary_emb_base": rope.get("rope_theta")}
    files.write_json(path, {**config, **{key: value for key, value in named.items() if value is not None}})
