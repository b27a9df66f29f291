"""The model of the benchmarks: a Llama of the quickstart's size with random weights and a tokenizer of the shop's words."""

from pathlib import Path
from typing import Any


def make_model(folder: Path, world: Any) -> Any:
    """Writes `folder`/model and returns its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lore.data_synth.corpus import write_corpus
    from lore.data_synth.world_stage import corpus_texts
    from lore.train.base import build_processor
    from lore.train.config import ArchitectureSection

    size, corpus = ArchitectureSection(), folder / "corpus.parquet"
    write_corpus(corpus, corpus_texts(world, 4000))
    tokenizer = build_processor([str(corpus)], 1600, size).tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.mlp,
        max_position_embeddings=size.max_positions,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return tokenizer
