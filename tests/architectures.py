"""Small configs of architectures that people fine-tune, with every kind of layer that they have."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

CONTEXT = 256  # tokens
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR_ATTENTION = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}
SLIDING = {"sliding_window": 64, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
OF_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}

# model_type -> what its config is given. Names that a config does not have are left out of SIZES.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": SIZES,
    "qwen2": SIZES,
    "qwen3": SIZES,
    "gemma": SIZES,
    "gemma2": {**SIZES, **SLIDING, "query_pre_attn_scalar": 8},
    "gemma3_text": {**SIZES, **SLIDING, "query_pre_attn_scalar": 8},
    "phi3": {**SIZES, "pad_token_id": 0},
    "exaone4": {**SIZES, **SLIDING},
    "olmo2": SIZES,
    "smollm3": SIZES,
    "stablelm": SIZES,
    "cohere2": {**SIZES, **SLIDING},
    "gpt2": OF_GPT2,
    "gpt_neox": {**SIZES, "rotary_pct": 0.5},
    "gptj": {**OF_GPT2, "rotary_dim": 8},
    "codegen": {**OF_GPT2, "rotary_dim": 8},
    "gpt_neo": {
        **{"hidden_size": 32, "num_layers": 4, "num_heads": 4, "max_position_embeddings": CONTEXT, "window_size": 64},
        "attention_types": [[["global", "local"], 2]],
    },
    "falcon": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": CONTEXT},
    "opt": {**SIZES, "word_embed_proj_dim": 32, "ffn_dim": 48},
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": CONTEXT},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "lfm2": {**SIZES, "layer_types": ["conv", "conv", "full_attention"]},
    "qwen3_next": {**SIZES, **LINEAR_ATTENTION, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": {**SIZES, **LINEAR_ATTENTION},
    "granitemoehybrid": {
        **SIZES,
        **{"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32, "mamba_n_heads": 8},
        **{"mamba_d_head": 8, "mamba_d_state": 8, "layer_types": ["mamba", "attention", "mamba"]},
    },
    "mixtral": {**SIZES, "num_local_experts": 4},
    "qwen3_moe": {**SIZES, **EXPERTS, "num_experts": 4},
    "gpt_oss": {**SIZES, **SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2},
    "exaone_moe": {**SIZES, **SLIDING, **EXPERTS, "num_experts": 4, "mlp_layer_types": ["dense", "sparse", "sparse"]},
}


def small_config(model_type: str, vocabulary: int = 200, **more: Any) -> PreTrainedConfig:
    """A config of a few thousand weights; KeyError where the installed transformers has no such architecture."""
    kind = CONFIG_MAPPING[model_type]
    plain = kind()
    given = {key: value for key, value in ARCHITECTURES[model_type].items() if key not in SIZES or hasattr(plain, key)}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return kind(**{"vocab_size": vocabulary, **ends, **given, **more})
