"""A tiny shop, a tiny vision-language base and a tiny text base with random weights, and recipes over them."""

import json
from dataclasses import dataclass
from pathlib import Path

HIDDEN = 32


@dataclass(frozen=True)
class Tiny:
    """Folders of what was made: pairs/ (train and test), an Idefics3 and a Llama with the same tokenizer."""

    pairs: Path
    vision: Path
    text: Path

    def recipe(self, run: str, *, model: str = "vision", lora: dict | None = None, prompt=None, data=None, **train) -> str:
        """An SFT recipe as JSON, which is YAML too: 8 steps of 8 pairs, unless `train` says otherwise."""
        section = {"name": str(self.vision if model == "vision" else self.text)}
        if lora is not None:
            section["lora"] = {"rank": 4, **lora}
        body = {
            "stage": "sft",
            "run": run,
            "model": section,
            "data": {"path": str(self.pairs), "rubric": "shop", "split": "train", "limit": 96} | (data or {}),
            "prompt": {"order": "reason_first", "detail": "name", "max_prompt_tokens": 512} | (prompt or {}),
            "train": {"steps": 8, "batch_size": 8, "lr": 1e-2, "log_every": 1, "save_every": 2} | train,
        }
        return json.dumps(body, indent=1)


def make(folder: Path, hidden: int = HIDDEN) -> Tiny:
    """Makes all of it; two seconds and no training. vLLM on a CPU needs heads of 32 at least, so hidden=64."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lore.data_synth.corpus import write_corpus
    from lore.data_synth.world import World
    from lore.data_synth.world_stage import corpus_texts
    from lore.pairs import PairWriter
    from lore.train.base import build_model, build_processor
    from lore.train.config import ArchitectureSection

    world = World(seed=3)
    for split, count in (("train", 160), ("test", 64)):
        with PairWriter(folder / "pairs" / f"{split}.parquet") as writer:
            for pair in world.pairs(split, count):
                writer.write(pair)

    corpus = folder / "corpus.parquet"
    write_corpus(corpus, corpus_texts(world, 200))
    size = ArchitectureSection(
        hidden=hidden, layers=2, heads=2, mlp=48, max_positions=1024, vision_hidden=16, vision_layers=1, vision_heads=2
    )
    processor = build_processor([str(corpus)], 700, size)
    torch.manual_seed(0)
    build_model(size, processor).save_pretrained(folder / "vision")
    processor.save_pretrained(folder / "vision")
    tokenizer = processor.tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=1024,
        initializer_range=hidden**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    return Tiny(folder / "pairs", folder / "vision", folder / "text")
