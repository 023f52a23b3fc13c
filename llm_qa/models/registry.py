"""What is known of models beside their shapes: special tokens, and configs with the shapes of `shapes.py`.

`--dry-run` and `bench.py` build those without the checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, GPT2Config, GPTNeoXConfig, PretrainedConfig

from llm_qa.console import UserError
from llm_qa.language import tr
from llm_qa.models.shapes import SHAPES, Shape

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


def known_shape(model: str) -> Shape | None:
    """The shape of a known hub id, or that of a folder whose config.json has the same numbers; None for others."""
    if model in SHAPES or not Path(model).is_dir():
        return SHAPES.get(model)
    config = model_config(model)
    numbers = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")

    def key(config: PretrainedConfig) -> list:
        return [config.model_type, *(getattr(config, name, None) for name in numbers)]

    return next((shape for shape in SHAPES.values() if key(shape_config(shape)) == key(config)), None)


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
            tr(
                "model {model!r} is not in the project's table ({known}) and its config cannot be "
                "read: {first_line} Set --model to a known id or a local folder.",
                model=model,
                known=", ".join(SHAPES),
                first_line=first_line,
            )
        ) from None
