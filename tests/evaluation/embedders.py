"""A sentence-transformers model small enough for a test: a random BERT over letters, mean pooling, a dense layer."""

from __future__ import annotations

from pathlib import Path

import torch


def make_embedder(folder: Path, letters: str, dimensions: int = 512) -> Path:
    """Save one to `folder` as a user's local copy would lie there; the package must be installed."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", *sorted(set(letters) - {" "})]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    encoder = Transformer(str(folder / "bert"))
    dense = Dense(16, dimensions, activation_function=torch.nn.Tanh())
    SentenceTransformer(modules=[encoder, Pooling(16), dense], device="cpu").save(str(folder / "embedder"))
    return folder / "embedder"
