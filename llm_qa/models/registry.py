"""The table of known models: shapes, special tokens, published facts.

`--dry-run` and `bench.py` build these shapes without the checkpoint. Parameter counts are computed from the shapes;
they equal the published ones except for the 12.8B model, whose card says 12,898,631,680.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoConfig, GPT2Config, GPTNeoXConfig, PretrainedConfig

from llm_qa.console import UserError


@dataclass(frozen=True)
class Shape:
    """Architecture of one known checkpoint (d_* in units, `rotary_share` the share of a head that is rotated)."""

    model_type: str
    parameters: int
    layers: int
    d_model: int
    d_ff: int
    heads: int
    vocabulary: int
    context: int
    rotary_share: float = 0.5


POLYGLOT_VOCABULARY = 30_080  # 30,003 tokens, padded
SHAPES = {
    "skt/kogpt2-base-v2": Shape("gpt2", 125_164_032, 12, 768, 3072, 12, 51_200, 1024),
    "EleutherAI/polyglot-ko-1.3b": Shape("gpt_neox", 1_331_810_304, 24, 2048, 8192, 16, POLYGLOT_VOCABULARY, 2048),
    "EleutherAI/polyglot-ko-3.8b": Shape("gpt_neox", 3_809_974_272, 32, 3072, 12288, 24, POLYGLOT_VOCABULARY, 2048),
    "EleutherAI/polyglot-ko-5.8b": Shape(
        "gpt_neox", 5_885_059_072, 28, 4096, 16384, 16, POLYGLOT_VOCABULARY, 2048, 0.25
    ),
    "EleutherAI/polyglot-ko-12.8b": Shape("gpt_neox", 12_893_603_840, 40, 5120, 20480, 40, POLYGLOT_VOCABULARY, 2048),
}

# KoGPT2's repository names no tokenizer class, and GPT-2's own would split Korean into bytes.
SPECIAL_TOKENS = {
    "skt/kogpt2-base-v2": {
        "bos_token": "</s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
}


def shape_config(shape: Shape) -> PretrainedConfig:
    """A transformers config with the shape's dimensions."""
    if shape.model_type == "gpt2":
        return GPT2Config(
            vocab_size=shape.vocabulary,
            n_positions=shape.context,
            n_embd=shape.d_model,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_inner=shape.d_ff,
            bos_token_id=1,
            eos_token_id=1,
        )
    return GPTNeoXConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.d_model,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.d_ff,
        max_position_embeddings=shape.context,
        rotary_pct=shape.rotary_share,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=2,
        eos_token_id=2,
    )


def model_config(model: str) -> PretrainedConfig:
    """The config of a hub id or a local folder: the project's table first, else the checkpoint's config.json.

    Raises UserError when the model is not in the table and its config cannot be read.
    """
    if model in SHAPES:
        return shape_config(SHAPES[model])
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"model {model!r} is not in the project's table ({', '.join(SHAPES)}) and its config cannot be read: "
            f"{first_line} Set --model to a known id or a local folder."
        ) from None
