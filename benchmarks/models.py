"""The models of the benchmarks, with random weights and a tokenizer trained on shop text: `small`, a Llama of the quickstart's size
for a CPU, and `8b`, which has the shape of Qwen3-8B and needs a GPU with 80 GB."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZES = ("small", "8b")


def prompt_section(size: str) -> dict[str, Any]:
    """The prompt section: short prompts for the small model, prompts with the whole rubric for the large one."""
    detail, longest = ("name", 512) if size == "small" else ("full", 4096)
    return {"order": "reason_first", "detail": detail, "photo": False, "max_prompt_tokens": longest}


def make_model(folder: Path, world: Any, size: str = "small") -> Any:
    """Writes the model to `folder`/model and returns its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config

    from lore.train.pretrain.config import ArchitectureSection

    small = ArchitectureSection()
    tokenizer, ids = make_tokenizer(folder, world)
    torch.manual_seed(0)
    if size == "small":
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=small.hidden,
            num_hidden_layers=small.layers,
            num_attention_heads=small.heads,
            intermediate_size=small.mlp,
            max_position_embeddings=small.max_positions,
            **ids,
        )
        model = LlamaForCausalLM(config)
    else:
        config = Qwen3Config(
            vocab_size=151936,
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=40960,
            tie_word_embeddings=False,
            **ids,
        )
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return tokenizer


def make_tokenizer(folder: Path, world: Any) -> tuple[Any, dict[str, int | None]]:
    """A tokenizer trained on shop text, and its special tokens for a model's config."""
    from lore.data_synth.shop.corpus import write_corpus
    from lore.data_synth.shop.write import corpus_texts
    from lore.train.pretrain.config import ArchitectureSection
    from lore.train.pretrain.pretrain import build_processor

    corpus = folder / "corpus.parquet"
    write_corpus(corpus, corpus_texts(world, 4000))
    tokenizer = build_processor([str(corpus)], 1600, ArchitectureSection()).tokenizer
    return tokenizer, {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def multiplied_weights(folder: Path) -> int:
    """Number of matrix weights of `folder`/model that each token is multiplied by: all except the input embedding."""
    from safetensors import safe_open

    count = 0
    for file in sorted((folder / "model").glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():
                if "embed_tokens" not in name:
                    rows = weights.get_slice(name).get_shape()
                    count += rows[0] * rows[1] if len(rows) == 2 else 0
    return count


@contextmanager
def gpu_memory() -> Iterator[list[float]]:
    """GiB in use on the first GPU, sampled twice per second with nvidia-smi while the block runs. Empty without a GPU."""
    seen: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        command = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not ended.wait(0.5):
            try:
                seen.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024)
            except (OSError, ValueError, subprocess.CalledProcessError):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
