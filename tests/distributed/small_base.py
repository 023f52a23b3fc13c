"""The base that these tests fine-tune: real in every part, small enough that two cores train it in seconds."""

from pathlib import Path

import torch
from transformers import GPTNeoXForCausalLM

from llm_qa.data.preparation import prepared_folder
from llm_qa.data.splits import load_split
from llm_qa.models.embedded import build_tokenizer, model_config
from llm_qa.models.loading import save_tokenizer

SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 511,
    "initializer_range": 0.05,
}


def save_small_base(folder: Path) -> Path:
    """Save a random GPT-NeoX of two layers with a tokenizer of the bundled data, as a recipe's `model` names a folder.

    Its matrices are whole numbers of 64-weight nf4 blocks; the middle of its MLP is odd, so that ZeRO-3 must pad what
    it shares out. The weights are large enough (.05) that attention and MLP matter to the loss. The seed is one with
    which the packs of the first updates differ enough in their loss to tell a mean of means.
    """
    records = load_split(prepared_folder(None), "train")
    prose = [" ".join(text for text in (record.context, *record.answers) if text) for record in records]
    tokenizer = build_tokenizer(["\n".join(dict.fromkeys(prose[i : i + 8])) for i in range(0, len(prose), 8)])
    torch.manual_seed(1)
    config = model_config(len(tokenizer), tokenizer.eos_token_id)
    config.update(SHAPE)
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder
